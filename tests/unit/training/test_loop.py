"""The loop on real images and the real small backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from mdpr.artifacts import Features, read_classes, read_features, read_images
from mdpr.config import Section, TuneParams
from mdpr.data.loading import ImageTable, eval_transform, train_transform
from mdpr.errors import TrainingError
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.training.loop import Fitted, TrainingData, fit
from mdpr.training.objective import Objective
from mdpr.training.reproducibility import seed_everything


@pytest.fixture(scope="module")
def backbone(small_params: Mapping[str, Section]) -> Backbone:
    return Backbone.load(small_params["backbone"])


class Bench:
    """One training set-up, fitted as often as a test wants."""

    def __init__(self, paths: Mapping[str, Path], backbone: Backbone, params: TuneParams) -> None:
        classes = read_classes(paths["prepared"])
        self.names = [item.name for item in classes]
        self.params, self.backbone = params, backbone
        self.features: Features = read_features(paths["features"], self.names)
        look = (backbone.image_size_px, backbone.image_mean, backbone.image_std)
        self.data = TrainingData(
            ImageTable(read_images(paths["prepared"] / "train.parquet"), train_transform(*look, "flip"), seed=0),
            ImageTable(read_images(paths["prepared"] / "val.parquet"), eval_transform(*look)),
            [item.train_images for item in classes],
            [item.shot for item in classes],
        )

    def model(self, **changes: object) -> MDPR:
        seed_everything(self.params.seed)
        return MDPR(self.backbone, self.names, self.params.model_copy(update=changes), self.features)

    def fit(self, **changes: object) -> Fitted:
        model = self.model(**changes)
        return fit(model, Objective(model, self.data.counts, self.features), self.data)


@pytest.fixture(scope="module")
def bench(encoded: Mapping[str, Path], backbone: Backbone, small_params: Mapping[str, Section]) -> Bench:
    params = small_params["tune"]
    assert isinstance(params, TuneParams)
    return Bench(encoded, backbone, params.model_copy(update={"epochs": 3, "batch_size": 64}))


def test_tuning_lowers_the_loss_and_records_every_epoch(bench: Bench) -> None:
    fitted = bench.fit()
    assert len(fitted.history) == 3
    assert fitted.history[-1]["loss_base"] < fitted.history[0]["loss_base"]
    assert {"val_base_all", "val_routed_all", "val_fused_all", "loss_semantic", "learning_rate"} <= set(
        fitted.history[0]
    )


def test_the_best_epoch_by_validation_is_kept(bench: Bench) -> None:
    fitted = bench.fit()
    curve = [row["val_fused_all"] for row in fitted.history]
    assert fitted.epoch == curve.index(max(curve))  # the earlier of two equal ones
    assert fitted.val_accuracy["fused"] == max(curve)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(bench: Bench) -> None:
    first, second, other = bench.fit(), bench.fit(), bench.fit(seed=1)
    assert first.history == second.history
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert first.history != other.history


@pytest.mark.parametrize(
    ("prompting", "routing"),
    [("none", True), *((name, routing) for name in ("coop", "vpt", "ivlp", "maple") for routing in (True, False))],
)
def test_every_tuner_trains_with_and_without_the_router(bench: Bench, prompting: str, routing: bool) -> None:
    model = bench.model(prompting=prompting, routing=routing, epochs=1)
    before = {name: value.clone() for name, value in model.learned_state().items()}
    fitted = fit(model, Objective(model, bench.data.counts, bench.features), bench.data)
    changed = {name for name, value in fitted.state.items() if not torch.equal(value, before[name])}
    assert changed == set(before)
    assert not any(name.startswith("backbone.") for name in before)
    assert ("val_routed_all" in fitted.history[0]) == routing


def test_the_frozen_model_is_not_touched(bench: Bench) -> None:
    before = {name: value.clone() for name, value in bench.backbone.state_dict().items()}
    bench.fit(epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in bench.backbone.state_dict().items())
    assert not bench.backbone.clip.training


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_term(bench: Bench) -> None:
    model = bench.model(epochs=1)
    assert model.align is not None
    with torch.no_grad():
        model.align.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"knowledge_alignment is nan at step 0 of epoch 1: lower tune"):
        fit(model, Objective(model, bench.data.counts, bench.features), bench.data)
