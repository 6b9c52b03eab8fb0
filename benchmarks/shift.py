"""`mdpr monitor` and a deployment prior on classes in other shares than in the test set.

    python -m benchmarks.shift --evaluation data/evaluation [--draws 10] [--ratio 50] [--json]

The test images of an evaluation are halved: one half is the reference, from the other new images are drawn without
replacement in the label shares of an exponential profile (--ratio between its first and last class, in random order).
Only the answers of the model are used, not the images.

shift_error                mean absolute error of the estimated class shares, points
shift_error_of_counting    the same of counting predictions
accuracy_gain_with_prior   points of accuracy that the estimated shares as deployment prior give
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import device_name, emit, make_parser
from mdpr.artifacts.prediction_log import Answers
from mdpr.monitoring.sample import Reference, read_reference
from mdpr.monitoring.shift import calibrate, estimate_label_shares

PACKAGES = ("numpy", "scipy")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--evaluation", type=Path, default=Path("data/evaluation"), help="what evaluate wrote")
    parser.add_argument("--draws", type=int, default=10, help="halves and profiles, from seed 0")
    parser.add_argument(
        "--ratio", type=float, default=50, help="images of the most frequent class per one of the rarest"
    )
    arguments = parser.parse_args()
    reference = read_reference(arguments.evaluation)
    figures, rows = measure_shift(reference, range(arguments.draws), arguments.ratio)
    emit("shift", device_name(), PACKAGES, figures, rows, arguments.json)


def measure_shift(
    reference: Reference, seeds: Sequence[int], ratio: float
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The three figures, means over the draws of `seeds`; and a row per draw."""
    rows = [{"seed": seed, **_draw(reference, np.random.default_rng(seed), ratio)} for seed in seeds]
    names = ("shift_error", "shift_error_of_counting", "accuracy_gain_with_prior")
    return {name: float(np.mean([row[name] for row in rows])) for name in names}, rows


def _draw(reference: Reference, generator: np.random.Generator, ratio: float) -> dict[str, float]:
    label_N, classes = reference.label_N, reference.classes
    order = generator.permutation(len(label_N))
    first, pool = order[: len(order) // 2], order[len(order) // 2 :]
    share_C = ratio ** (-generator.permutation(classes) / max(1, classes - 1))
    available_C = np.bincount(label_N[pool], minlength=classes)
    wanted_C = np.floor(share_C * (available_C / share_C).min()).astype(int)
    drawn = np.concatenate([pool[label_N[pool] == index][: wanted_C[index]] for index in range(classes)])
    known, new = replace(reference, answers=_take(reference.answers, first)), _take(reference.answers, drawn)
    assert new.label_N is not None
    true_C = wanted_C / wanted_C.sum()
    calibration = calibrate(known)
    estimated_C = estimate_label_shares(known, calibration, Answers(new.class_NK, new.log_probability_NK))
    counted_C = np.bincount(new.top1_N, minlength=classes) / len(new)
    adjusted_NK = new.log_probability_NK + (np.log(estimated_C) - calibration.log_prior_C)[new.class_NK]
    adjusted_N = np.take_along_axis(new.class_NK, adjusted_NK.argmax(axis=1)[:, None], axis=1)[:, 0]
    before, after = ((top1_N == new.label_N).mean() for top1_N in (new.top1_N, adjusted_N))
    return {
        "images": len(new),
        "shift_error": 100 * float(np.abs(estimated_C - true_C).mean()),
        "shift_error_of_counting": 100 * float(np.abs(counted_C - true_C).mean()),
        "accuracy": 100 * float(before),
        "accuracy_gain_with_prior": 100 * float(after - before),
    }


def _take(answers: Answers, rows: np.ndarray) -> Answers:
    assert answers.label_N is not None
    return Answers(answers.class_NK[rows], answers.log_probability_NK[rows], None, answers.label_N[rows])


if __name__ == "__main__":
    main()
