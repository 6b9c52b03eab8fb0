"""One training set-up on real images and the real small backbone, fitted as often as a test wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mdpr.artifacts import Features, read_classes, read_features, read_images
from mdpr.images.loading import ImageTable, eval_transform, train_transform
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.params import Section, TuneParams
from mdpr.training.checkpoint import seed_everything
from mdpr.training.loop import Fitted, Surroundings, TrainingData, fit
from mdpr.training.losses import Objective


@pytest.fixture(scope="package")
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

    def objective(self, **changes: object) -> Objective:
        return Objective(self.model(**changes), self.data.counts, self.features)

    def fit(self, around: Surroundings | None = None, **changes: object) -> Fitted:
        objective = self.objective(**changes)
        return fit(objective.model, objective, self.data, around)


@pytest.fixture(scope="package")
def bench(encoded: Mapping[str, Path], backbone: Backbone, small_params: Mapping[str, Section]) -> Bench:
    params = small_params["tune"]
    assert isinstance(params, TuneParams)
    return Bench(encoded, backbone, params.model_copy(update={"epochs": 3, "batch_size": 64}))
