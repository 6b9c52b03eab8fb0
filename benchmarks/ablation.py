"""What each dimension of the knowledge is worth: MDPR trained again without it.

    python -m benchmarks.ablation --seeds 3 [--json] [--only without_functionality] [--set tune.epochs=4]

Every seed cuts its own long tail and trains one model a row: all five dimensions, each one left out, and the sentences
of other classes (shuffled). Each is selected on validation and scored once on the complete test set. Accuracy is in
points, the class-balanced mean of the fused answer; worth_DIMENSION is the model with all five minus the one without.
What the same sentences are worth to a model that is not trained again is in every evaluation (variants.csv).
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.report import device_name, emit, interval_95
from mdpr.artifacts import Features, read_classes, read_features, read_images
from mdpr.config import DIMENSIONS, BackboneParams, Section, TuneParams, load_params
from mdpr.data.loading import ImageTable, eval_transform, make_loader, train_transform
from mdpr.evaluation.ablation import ABLATIONS, DROP
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.progress import track
from mdpr.stages.definition import load_stage, run_stage
from mdpr.training.loop import TrainingData, fit
from mdpr.training.objective import Objective
from mdpr.training.reproducibility import seed_everything
from mdpr.training.validation import validate

PACKAGES = ("torch", "open_clip_torch", "numpy")
WHOLE = "all_dimensions"
ROWS = (WHOLE, *(f"{DROP}{dimension}" for dimension in DIMENSIONS), "shuffled_sentences")
GROUPS = ("all", "few")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--only", action="append", choices=ROWS[1:], help="this row, beside the whole; may be repeated")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings to start from")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("mdpr").setLevel(logging.WARNING)

    names = [WHOLE, *(arguments.only or ROWS[1:])]
    rows: list[dict[str, Any]] = []
    frozen: Backbone | None = None
    for seed in range(arguments.seeds):
        params = load_params(arguments.params, [*arguments.overrides, f"prepare.seed={seed}", f"tune.seed={seed}"])
        if frozen is None:
            backbone = params["backbone"]
            assert isinstance(backbone, BackboneParams)
            frozen = Backbone.load(backbone)
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"seed": seed} | run_seed(Path(folder), params, frozen, names))
    assert frozen is not None
    keys = [key for key in rows[0] if key != "seed"]
    figures = {key: mean(row[key] for row in rows) for key in keys}
    half_widths = {f"{key}_ci95": interval_95([row[key] for row in rows]) for key in keys}
    table = [{"points": key, "mean": figures[key], "± 95 %": half_widths[f"{key}_ci95"]} for key in keys]
    known = {key: value for key, value in (figures | half_widths).items() if math.isfinite(value)}
    emit("ablation", device_name(frozen.device.type), PACKAGES, known, rows, arguments.json, table)


def run_seed(folder: Path, params: dict[str, Section], frozen: Backbone, names: Sequence[str]) -> dict[str, float]:
    """All figures of one seed, in points."""
    paths = {name: folder / name for name in ("prepared", "probe", "knowledge", "features")}
    for stage in ("prepare", "probe", "describe", "encode"):
        run_stage(load_stage(stage), paths, params)
    classes = read_classes(paths["prepared"])
    class_names, shots = [item.name for item in classes], [item.shot for item in classes]
    features = read_features(paths["features"], class_names)
    look = (frozen.image_size_px, frozen.image_mean, frozen.image_std)
    tune = params["tune"]
    assert isinstance(tune, TuneParams)
    tune = tune.model_copy(update={"routing": True})
    counts = [item.train_images for item in classes]

    def table(split: str, **options: Any) -> ImageTable:
        transform = train_transform(*look, tune.augment) if split == "train" else eval_transform(*look)
        return ImageTable(read_images(paths["prepared"] / f"{split}.parquet"), transform, **options)

    test = table("test")
    figures: dict[str, float] = {}
    for name in track(names, "models"):
        known = features if name == WHOLE else without(features, name)
        data = TrainingData(train=table("train", seed=tune.seed), val=table("val"), counts=counts, shots=shots)
        seed_everything(tune.seed)
        model = MDPR(frozen, class_names, tune, known)
        model.load_learned_state(fit(model, Objective(model, data.counts, known), data).state)
        scores = validate(model, make_loader(test, 512), shots)["fused"]
        figures |= {f"{name}_{group}": 100 * scores[group] for group in GROUPS if group in scores}
    worth = {
        f"worth_{name.removeprefix(DROP)}_{group}": figures[f"{WHOLE}_{group}"] - figures[f"{name}_{group}"]
        for name in names[1:]
        for group in GROUPS
        if f"{name}_{group}" in figures
    }
    return figures | worth


def without(features: Features, name: str) -> Features:
    """`features` as the ablation `name` leaves them; what derives from the sentences follows them."""
    sentences_CVd, prior_CV = torch.as_tensor(features.sentences_CVd), torch.as_tensor(features.prior_CV)
    changed_CVd = ABLATIONS[name](sentences_CVd, prior_CV)
    if name.startswith(DROP):
        kept = [index for index, key in enumerate(DIMENSIONS) if f"{DROP}{key}" != name]
        prior_CV = prior_CV[:, kept]
    return replace(
        features,
        sentences_CVd=changed_CVd.numpy(),
        summary_Cd=changed_CVd.mean(dim=1).numpy(),
        prior_CV=prior_CV.contiguous().numpy(),
    )


if __name__ == "__main__":
    main()
