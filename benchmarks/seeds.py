"""Benchmarks that train models: every seed cuts its own long tail, and its models start from the same ground."""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.report import device_name, emit, interval_95, make_parser
from mdpr.artifacts import ClassInfo, Features, Probe, read_classes, read_features, read_images, read_probe
from mdpr.images.loading import ImageTable, eval_transform, make_loader
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.params import Params, TuneParams, load_params
from mdpr.stages.stage import load_stage, run_stage
from mdpr.training.checkpoint import seed_everything
from mdpr.training.loop import TrainingData, fit, validate
from mdpr.training.losses import Objective

PACKAGES = ("torch", "open_clip_torch", "numpy")
STAGES = {"prepare": "prepared", "probe": "probe", "describe": "knowledge", "encode": "features"}  # stage -> its output
BATCH_IMAGES = 512


@dataclass(frozen=True)
class Ground:
    """What all models of a seed share: the cut, what the frozen model found in it, the settings."""

    frozen: Backbone
    prepared: Path
    classes: tuple[ClassInfo, ...]
    probe: Probe
    features: Features
    tune: TuneParams

    @property
    def shots(self) -> list[Any]:
        return [item.shot for item in self.classes]

    def table(self, split: str) -> ImageTable:
        transform = eval_transform(self.frozen.image_size_px, self.frozen.image_mean, self.frozen.image_std)
        return ImageTable(read_images(self.prepared / f"{split}.parquet"), transform)

    def score(self, tune: TuneParams, features: Features) -> dict[str, float]:
        """Train one model and score its answer once on the test set: group -> points."""
        return self.score_branches(self.train(tune, features))["fused"]

    def train(self, tune: TuneParams, features: Features) -> MDPR:
        """A trained model, of the epoch that is best on validation."""
        data = TrainingData.read(self.prepared, self.frozen, tune)
        seed_everything(tune.seed)
        model = MDPR(self.frozen, [item.name for item in self.classes], tune, features, self.probe)
        model.load_learned_state(fit(model, Objective(model, data.counts, features), data).state)
        return model

    def score_branches(self, model: MDPR) -> dict[str, dict[str, float]]:
        """branch -> group -> points on the test set."""
        scores = validate(model, make_loader(self.table("test"), BATCH_IMAGES), self.shots)
        return {branch: {group: 100 * value for group, value in groups.items()} for branch, groups in scores.items()}


def with_settings(tune: TuneParams, settings: Mapping[str, object]) -> TuneParams:
    """`tune` with some settings changed, checked as in params.yaml."""
    return TuneParams.model_validate(tune.model_dump() | dict(settings))


def seed_parser(description: str | None, seeds: int) -> argparse.ArgumentParser:
    """`make_parser` with the options of a benchmark over seeds."""
    parser = make_parser(description)
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them; those reported start at 0")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings to start from")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


def run_seeds(
    benchmark: str,
    arguments: argparse.Namespace,
    measure: Callable[[Ground], dict[str, float]],
    weights: Sequence[str] = (),
) -> None:
    """Print what `measure` finds on each seed's ground, in points, and the means with their 95 % intervals.

    With `weights`, files of weights that take the place of backbone.weights, every seed is run with each of them.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("mdpr").setLevel(logging.WARNING)
    rows: list[dict[str, Any]] = []
    for index, overrides in enumerate([[f"backbone.weights={file}"] for file in weights] or [[]]):
        overrides = [*overrides, *arguments.overrides]
        frozen = Backbone.load(load_params(arguments.params, overrides).backbone)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            params = load_params(arguments.params, [*overrides, f"prepare.seed={seed}", f"tune.seed={seed}"])
            with tempfile.TemporaryDirectory() as folder:
                row = measure(lay_ground(Path(folder), params, frozen))
            where = ({"backbone": index} if weights else {}) | {"seed": seed}
            logging.info("%s: %s", where, ", ".join(f"{name} {value:.2f}" for name, value in row.items()))
            rows.append(where | row)
    figures = {name: mean(row[name] for row in rows) for name in rows[0] if name not in ("seed", "backbone")}
    half_widths = {f"{name}_ci95": interval_95([row[name] for row in rows]) for name in figures}
    table = [
        {"points": name, "mean": value, "± 95 %": half_widths[f"{name}_ci95"]}
        | {" ".join(f"{key} {row[key]}" for key in ("backbone", "seed") if key in row): row[name] for row in rows}
        for name, value in figures.items()
    ]
    known = {name: value for name, value in (figures | half_widths).items() if math.isfinite(value)}
    emit(benchmark, device_name(frozen.device.type), PACKAGES, known, rows, arguments.json, table)


def lay_ground(folder: Path, params: Params, frozen: Backbone) -> Ground:
    """Run the stages before tune into `folder`."""
    paths = {name: folder / name for name in STAGES.values()}
    for stage in STAGES:
        run_stage(load_stage(stage), paths, params)
    classes = tuple(read_classes(paths["prepared"]))
    names = [item.name for item in classes]
    return Ground(
        frozen=frozen,
        prepared=paths["prepared"],
        classes=classes,
        probe=read_probe(paths["probe"], names),
        features=read_features(paths["features"], names),
        tune=params.tune,
    )
