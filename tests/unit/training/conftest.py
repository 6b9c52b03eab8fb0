"""One training set-up on real images and the real small backbone, fitted as often as a test wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mdpr.artifacts import Features, Probe, read_classes, read_features, read_probe
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.params import Params, TuneParams
from mdpr.training.checkpoint import seed_everything
from mdpr.training.loop import FitResult, TrainContext, TrainingData, fit
from mdpr.training.losses import Objective


@pytest.fixture(scope="package")
def backbone(small_params: Params) -> Backbone:
    return Backbone.load(small_params.backbone)


class Bench:
    """One training set-up, fitted as often as a test wants."""

    def __init__(self, paths: Mapping[str, Path], backbone: Backbone, params: TuneParams) -> None:
        self.names = [item.name for item in read_classes(paths["prepared"])]
        self.params, self.backbone = params, backbone
        self.features: Features = read_features(paths["features"], self.names)
        self.probe: Probe = read_probe(paths["probe"], self.names)
        self.data = TrainingData.read(paths["prepared"], backbone, params)

    def model(self, **changes: object) -> MDPR:
        seed_everything(self.params.seed)
        return MDPR(self.backbone, self.names, self.params.model_copy(update=changes), self.features, self.probe)

    def objective(self, **changes: object) -> Objective:
        return Objective(self.model(**changes), self.data.counts, self.features)

    def fit(self, context: TrainContext | None = None, **changes: object) -> FitResult:
        objective = self.objective(**changes)
        return fit(objective.model, objective, self.data, context)


@pytest.fixture(scope="package")
def bench(encoded: Mapping[str, Path], backbone: Backbone, small_params: Params) -> Bench:
    params = small_params.tune
    return Bench(encoded, backbone, params.model_copy(update={"epochs": 3, "batch_size": 64}))
