"""The loop on real images and the real small backbone."""

from __future__ import annotations

import math
from threading import Event
from typing import Any

import pytest
import torch

from mdpr.errors import Diverged, Interrupted
from mdpr.model.routing import ROUTERS
from mdpr.params import LossParams
from mdpr.params.tuning import LOSS_PRESETS, PUBLISHED
from mdpr.training.checkpoint import Snapshot
from mdpr.training.loop import TrainContext, fit


def test_tuning_lowers_the_loss_and_records_every_epoch(bench: Any) -> None:
    fitted = bench.fit()
    assert len(fitted.history) == 3
    assert fitted.history[-1]["loss_base"] < fitted.history[0]["loss_base"]
    assert {"val_base_all", "val_routed_all", "val_fused_all", "loss_semantic", "learning_rate"} <= set(
        fitted.history[0]
    )


def test_the_best_epoch_by_validation_is_kept(bench: Any) -> None:
    fitted = bench.fit()
    curve = [row["val_fused_all"] for row in fitted.history]
    assert fitted.epoch == curve.index(max(curve))  # the earlier of two equal ones
    assert fitted.val_accuracy["fused"] == max(curve)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(bench: Any) -> None:
    first, second, other = bench.fit(), bench.fit(), bench.fit(seed=1)
    assert first.history == second.history
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert first.history != other.history


@pytest.mark.parametrize(
    ("prompting", "router"),
    [
        ("none", "attention"),
        *((name, router) for name in ("coop", "vpt", "ivlp", "maple") for router in (*ROUTERS, None)),
        *((name, router) for name in ("adaptformer", "lora", "ssf", "bitfit") for router in ("paired_gate", None)),
    ],
)
def test_every_tuner_trains_with_every_router_and_without(bench: Any, prompting: str, router: str | None) -> None:
    routing = router is not None
    objective = bench.objective(prompting=prompting, routing=routing, router=router, epochs=1)
    before = {name: value.clone() for name, value in objective.model.learned_state().items()}
    fitted = fit(objective.model, objective, bench.data)
    changed = {name for name, value in fitted.state.items() if not torch.equal(value, before[name])}
    assert changed | {"fusion.base_weight"} == set(before)  # chosen, not learned: it may stay at 1/2
    assert not any(name.startswith("backbone.") for name in before)
    assert ("val_routed_all" in fitted.history[0]) == routing


@pytest.mark.parametrize(
    "settings",
    [
        {"prompting": "none", "routing": False, "head_init": "class_mean"},
        {"prompting": "maple", "head_init": "sentences", "base_loss": "ldam", "head_scale": 25.0},
        {"prompting": "lora", "router": "attention", "fusion": "gla", "base_loss": "ce"},
        {"prompting": "adaptformer", "fusion": "entropy", "micro_batch_size": 16, "checkpoint_blocks": True},
    ],
)
def test_a_head_of_its_own_trains_without_the_text_tower(
    bench: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = bench.objective(epochs=1, head="cosine", **settings)
    monkeypatch.setattr(type(bench.backbone.text), "forward", lambda *_: pytest.fail("the text tower ran"))
    before = {name: value.clone() for name, value in objective.model.learned_state().items()}
    fitted = fit(objective.model, objective, bench.data)
    unchanged = {name for name, value in fitted.state.items() if torch.equal(value, before[name])}
    assert not {name for name in unchanged if not name.startswith("fusion.")}
    assert {"head_Cd"} < set(before)


def test_the_published_preset_trains_the_scale_and_moves_the_rate_per_epoch(bench: Any) -> None:
    """The scale learns and stays at most 100; a resumed run has the history of a whole one."""
    kept: list[Snapshot] = []
    published = PUBLISHED | {"loss": LossParams(**LOSS_PRESETS["paper"]), "checkpoint_every_steps": 2}
    whole = bench.fit(TrainContext(save=lambda snapshot: kept.append(copy(snapshot))), **published)
    scale = whole.state["log_scale"].exp().item()
    start = bench.backbone.logit_scale.item()
    assert scale != start
    assert scale <= 100.001
    rates = [row["learning_rate"] for row in whole.history]
    spread = [1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert rates == pytest.approx(spread)
    resumed = bench.fit(TrainContext(resume=kept[0]), **published)
    assert resumed.history == whole.history


@pytest.mark.parametrize(
    ("prompting", "optimizer"), [("adaptformer", "sgd"), ("lora", "adamw"), ("ssf", "adamw"), ("bitfit", "sgd")]
)
def test_adapters_and_a_head_resume_with_the_same_bits(bench: Any, prompting: str, optimizer: str) -> None:
    kept: list[Snapshot] = []
    settings = SPLIT | {"prompting": prompting, "head": "cosine", "optimizer": optimizer}
    whole = bench.fit(TrainContext(save=lambda snapshot: kept.append(copy(snapshot))), **settings)
    resumed = bench.fit(TrainContext(resume=kept[0]), **settings)
    assert resumed.history == whole.history
    assert all(torch.equal(value, resumed.state[name]) for name, value in whole.state.items())


def test_the_fusion_weight_chosen_on_validation_belongs_to_the_best_epoch_and_resumes(bench: Any) -> None:
    kept: list[Snapshot] = []
    fitted = bench.fit(TrainContext(save=lambda snapshot: kept.append(copy(snapshot))), fusion="validated")
    weights = [row["base_weight"] for row in fitted.history]
    assert fitted.state["fusion.base_weight"].item() == pytest.approx(weights[fitted.epoch])
    for row in fitted.history:  # the weights 0 and 1 are among the candidates
        assert row["val_fused_all"] >= max(row["val_base_all"], row["val_routed_all"])
    resumed = bench.fit(TrainContext(resume=kept[0]), fusion="validated")
    assert resumed.history == fitted.history
    assert torch.equal(resumed.state["fusion.base_weight"], fitted.state["fusion.base_weight"])


def test_the_frozen_model_is_not_touched(bench: Any) -> None:
    before = {name: value.clone() for name, value in bench.backbone.state_dict().items()}
    bench.fit(epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in bench.backbone.state_dict().items())
    assert not bench.backbone.clip.training


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_term(bench: Any) -> None:
    objective = bench.objective(epochs=1, micro_batch_size=16)
    with torch.no_grad():
        objective.model.align.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"knowledge_alignment is nan at step 0 of epoch 1: lower tune"):
        fit(objective.model, objective, bench.data)


SPLIT = {
    "epochs": 2,
    "micro_batch_size": 48,
    "sampling": "class_balanced",
    "warmup_epochs": 0.5,
    "checkpoint_every_steps": 2,
}


@pytest.mark.parametrize("router", ROUTERS)
def test_resuming_from_any_snapshot_ends_with_the_same_bits(bench: Any, router: str) -> None:
    kept: list[Snapshot] = []
    settings = {**SPLIT, "router": router}
    whole = bench.fit(TrainContext(save=lambda snapshot: kept.append(copy(snapshot))), **settings)
    places = {(snapshot.record["epoch"], snapshot.record["step"]) for snapshot in kept}
    assert {(0, 2), (1, 0), (1, 2), (2, 0)} <= places
    for snapshot in (kept[0], kept[-1]):
        resumed = bench.fit(TrainContext(resume=snapshot), **settings)
        assert resumed.history == whole.history
        assert resumed.epoch == whole.epoch
        assert all(torch.equal(value, whole.state[name]) for name, value in resumed.state.items())


def test_a_stop_that_was_asked_for_keeps_the_step_that_ran_and_leaves(bench: Any) -> None:
    kept: list[Snapshot] = []
    stop = Event()
    stop.set()
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM after step 1 of epoch 1: the same command goes on"):
        bench.fit(TrainContext(save=kept.append, stop=stop))
    assert [(snapshot.record["epoch"], snapshot.record["step"]) for snapshot in kept] == [(0, 1)]
    assert Interrupted.exit_code == 143


def test_early_stopping_waits_as_long_as_it_was_told(bench: Any) -> None:
    # A rate this small changes no prediction: no epoch is better than the first.
    settings = {"learning_rate": 1e-12, "min_learning_rate": 0.0, "epochs": 5, "prompting": "none"}
    assert [len(bench.fit(**settings, early_stopping_patience=patience).history) for patience in (1, 3)] == [2, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_workers_change_nothing(bench: Any, workers: int) -> None:
    one = bench.fit(epochs=1, prompting="none", workers=workers)
    assert one.history == bench.fit(epochs=1, prompting="none").history


def copy(snapshot: Snapshot) -> Snapshot:
    """As a file would keep it: later steps change the model's tensors in place."""
    record = {**snapshot.record, "history": list(snapshot.record["history"])}
    return Snapshot({name: value.clone() for name, value in snapshot.tensors.items()}, record)
