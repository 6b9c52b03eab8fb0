"""What routing gives: MaPLe with and without MDPR, on plain cross entropy and with logit adjustment.

    python -m benchmarks.accuracy --seeds 5 [--json] [--set tune.epochs=10]

Every seed cuts its own long tail from the embedded pool, reads its own rivals and trains its own four models, each
selected on validation and scored once on the complete test set (10,000 images). Accuracy is in points, the
class-balanced mean; gain_ce is MDPR minus MaPLe on plain cross entropy.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.report import device_name, emit, interval_95
from mdpr.artifacts import Probe, read_classes, read_features, read_images, read_probe
from mdpr.config import BackboneParams, Section, TuneParams, load_params
from mdpr.data.loading import ImageTable, eval_transform, make_loader, train_transform
from mdpr.evaluation.metrics import class_recall, group_means
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.progress import track
from mdpr.stages.definition import load_stage, run_stage
from mdpr.training.loop import TrainingData, fit
from mdpr.training.objective import Objective
from mdpr.training.reproducibility import seed_everything
from mdpr.training.validation import validate

# name -> (base loss, routing)
MODELS = {
    "maple_ce": ("ce", False),
    "mdpr_ce": ("ce", True),
    "maple_la": ("logit_adjusted", False),
    "mdpr_la": ("logit_adjusted", True),
}
PACKAGES = ("torch", "open_clip_torch", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings to start from")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("mdpr").setLevel(logging.WARNING)

    rows = []
    frozen: Backbone | None = None
    for seed in range(arguments.seeds):
        overrides = [*arguments.overrides, f"prepare.seed={seed}", f"tune.seed={seed}"]
        params = load_params(arguments.params, overrides)
        if frozen is None:
            backbone = params["backbone"]
            assert isinstance(backbone, BackboneParams)
            frozen = Backbone.load(backbone)
        with tempfile.TemporaryDirectory() as folder:
            row = {"seed": seed} | run_seed(Path(folder), params, frozen)
        logging.info("seed %d: %s", seed, ", ".join(f"{k} {v:.1f}" for k, v in row.items() if k != "seed"))
        rows.append(row)

    assert frozen is not None
    names = [name for name in rows[0] if name != "seed"]
    figures = {name: mean(row[name] for row in rows) for name in names}
    half_widths = {f"{name}_ci95": interval_95([row[name] for row in rows]) for name in names}
    table = [
        {"points": name, "mean": figures[name], "± 95 %": half_widths[f"{name}_ci95"]}
        | {f"seed {row['seed']}": row[name] for row in rows}
        for name in names
    ]
    device = device_name(frozen.device.type)
    known = {name: value for name, value in (figures | half_widths).items() if math.isfinite(value)}
    emit("accuracy", device, PACKAGES, known, rows, arguments.json, table)


def run_seed(folder: Path, params: dict[str, Section], frozen: Backbone) -> dict[str, float]:
    """All figures of one seed, in points."""
    paths = {name: folder / name for name in ("prepared", "probe", "knowledge", "features")}
    for name in ("prepare", "probe", "describe", "encode"):
        run_stage(load_stage(name), paths, params)
    prepared = paths["prepared"]
    classes = read_classes(prepared)
    names, shots = [item.name for item in classes], [item.shot for item in classes]
    features = read_features(paths["features"], names)
    look = (frozen.image_size_px, frozen.image_mean, frozen.image_std)
    test = ImageTable(read_images(prepared / "test.parquet"), eval_transform(*look))

    figures = {"zero_shot_all": 100 * zero_shot(frozen, read_probe(paths["probe"], names), test, shots)["all"]}
    settings = params["tune"]
    assert isinstance(settings, TuneParams)
    for model_name, (base_loss, routing) in track(MODELS.items(), "models"):
        tune = settings.model_copy(update={"base_loss": base_loss, "routing": routing})
        data = TrainingData(
            train=ImageTable(
                read_images(prepared / "train.parquet"), train_transform(*look, tune.augment), seed=tune.seed
            ),
            val=ImageTable(read_images(prepared / "val.parquet"), eval_transform(*look)),
            counts=[item.train_images for item in classes],
            shots=shots,
        )
        seed_everything(tune.seed)
        model = MDPR(frozen, names, tune, features)
        model.load_learned_state(fit(model, Objective(model, data.counts, features), data).state)
        scores = validate(model, make_loader(test, 512), shots)["fused"]
        figures |= {f"{model_name}_{group}": 100 * scores[group] for group in ("all", "many", "medium", "few")}
    return figures | {
        f"gain_{loss}_{group}": figures[f"mdpr_{loss}_{group}"] - figures[f"maple_{loss}_{group}"]
        for loss in ("ce", "la")
        for group in ("all", "few")
    }


@torch.no_grad()
def zero_shot(frozen: Backbone, probe: Probe, test: ImageTable, shots: list[Any]) -> dict[str, float]:
    """The frozen model's own class-balanced accuracy on the test set."""
    text_Cd = torch.as_tensor(probe.text_Cd, device=frozen.device)
    predicted = [
        (frozen.encode_image(image_B3HW.to(frozen.device)) @ text_Cd.T).argmax(dim=1).cpu()
        for image_B3HW, _ in make_loader(test, 512)
    ]
    return group_means(class_recall(test.labels_N, torch.cat(predicted).numpy(), len(shots)), shots)


if __name__ == "__main__":
    main()
