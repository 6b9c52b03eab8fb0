"""How well the hidden pre-training prior is found again, on the shipped sets, where the truth is known.

    python -m benchmarks.hidden_prior --seeds 5 [--json] [--set probe.prior_shrinkage=0.1]
    mdpr recipe use emblems-lt --params emblems.yaml && python -m benchmarks.hidden_prior --params emblems.yaml

Every seed cuts its own long tail and estimates the prior from only those training images. spearman compares the
estimate with the true pre-training counts (pretraining.json) over classes; zero_shot_gain is the effect of subtracting
the estimated log prior from the zero-shot logits on the complete test set, in points of class-balanced accuracy.

Two figures from the balanced test set say where an error comes from: spearman_balanced compares the estimate from those
images, without a long tail; spearman_own_cosine compares, in place of the estimate, the mean cosine of a class's images
with its own name.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.report import device_name, emit, make_parser
from mdpr.artifacts import read_classes, read_images, read_json, read_probe
from mdpr.evaluation.metrics import class_recall
from mdpr.images.loading import ImageTable, eval_transform, make_loader
from mdpr.model.backbone import Backbone
from mdpr.params import load_params
from mdpr.probe.frozen import choose_shrinkage, estimate_log_prior
from mdpr.progress import track
from mdpr.stages.stage import load_stage, run_stage

PACKAGES = ("torch", "open_clip_torch", "scipy")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings to start from")
    parser.add_argument("--truth", type=Path, help="true counts; pretraining.json beside the weights if not named")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    test_features: tuple[torch.Tensor, np.ndarray] | None = None
    rows = []
    for seed in range(arguments.seeds):
        params = load_params(arguments.params, [*arguments.overrides, f"prepare.seed={seed}"])
        file = arguments.truth or Path(params.backbone.weights).with_name("pretraining.json")
        truth = read_json(file)["images_per_class"]
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder) / name for name in ("prepared", "probe")}
            for name in paths:
                run_stage(load_stage("prepare" if name == "prepared" else name), paths, params)
            names = [item.name for item in read_classes(paths["prepared"])]
            probe = read_probe(paths["probe"], names)
            if test_features is None:  # the test set is the same for every seed
                test_features = encode_test(Backbone.load(params.backbone), paths["prepared"] / "test.parquet")
        image_Nd, label_N = test_features
        text_Cd, count_C = torch.as_tensor(probe.text_Cd), [truth[name] for name in names]
        cosine_NC = image_Nd @ text_Cd.T
        logits_NC = probe.logit_scale * cosine_NC
        scaled_Nd, shrinkage = probe.logit_scale * image_Nd, params.probe.prior_shrinkage
        if shrinkage is None:
            shrinkage = choose_shrinkage(scaled_Nd, text_Cd, torch.from_numpy(label_N))
        untailed_C = estimate_log_prior(scaled_Nd, text_Cd, torch.from_numpy(label_N), shrinkage)
        known_C = [cosine_NC[label_N == index, index].mean().item() for index in range(len(names))]
        rows.append(
            {
                "seed": seed,
                "spearman": rank_correlation(probe.log_prior_C, count_C),
                "spearman_balanced": rank_correlation(untailed_C, count_C),
                "spearman_own_cosine": rank_correlation(known_C, count_C),
                "zero_shot": balanced_accuracy(logits_NC, label_N),
                "debiased": balanced_accuracy(logits_NC - torch.as_tensor(probe.log_prior_C), label_N),
            }
        )
    figures = {
        "spearman_mean": mean(row["spearman"] for row in rows),
        "spearman_min": min(row["spearman"] for row in rows),
        "spearman_balanced": mean(row["spearman_balanced"] for row in rows),
        "spearman_own_cosine": mean(row["spearman_own_cosine"] for row in rows),
        "zero_shot_gain": mean(row["debiased"] - row["zero_shot"] for row in rows),
    }
    emit("hidden_prior", device_name(), PACKAGES, figures, rows, arguments.json)


def encode_test(frozen: Backbone, path: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Frozen features (N, d) and labels (N,) of the test split."""
    look = (frozen.image_size_px, frozen.image_mean, frozen.image_std)
    dataset = ImageTable(read_images(path), eval_transform(*look))
    parts = [
        frozen.encode_image(image_B3HW.to(frozen.device)).cpu()
        for image_B3HW, _ in track(make_loader(dataset, 512), "test set")
    ]
    return torch.cat(parts), dataset.labels_N


def rank_correlation(found_C: Any, count_C: Sequence[int]) -> float:
    """Spearman's, between something of each class and its true count."""
    return float(spearmanr(found_C, count_C).statistic)


def balanced_accuracy(logits_NC: torch.Tensor, label_N: np.ndarray) -> float:
    """Mean recall over classes, in points."""
    return 100 * float(class_recall(label_N, logits_NC.argmax(dim=1).numpy(), logits_NC.shape[1]).mean())


if __name__ == "__main__":
    main()
