"""Confidence intervals of class-balanced accuracy over test images (see `mdpr.bootstrap`).

An interval speaks of the choice of test images alone, not of the training seed. It is the percentile interval;
where every image of every class has the same outcome it has no width.

Shapes: N test images, C classes, K outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mdpr.artifacts import Intervals
from mdpr.bootstrap import bootstrap_means
from mdpr.evaluation.metrics import group_members
from mdpr.evaluation.predictions import final_branch, recorded_branches

LEVEL = 0.95
RESAMPLINGS = 2000
SEED = 0

Interval = tuple[float, float]


def accuracy_intervals(predictions: pd.DataFrame, branch: str, shots: Sequence[str]) -> dict[str, Interval]:
    """Intervals of a branch's class-balanced accuracy, as fractions."""
    correct_N = (predictions[f"{branch}_top1"] == predictions["label"]).to_numpy()
    return _group_intervals(predictions, np.where(correct_N, 0, 1), (1, 0), shots)


def gain_intervals(predictions: pd.DataFrame, branch: str, reference: str, shots: Sequence[str]) -> dict[str, Interval]:
    """Intervals of accuracy(branch) - accuracy(reference) on the same images: paired, so narrower than two."""
    right_N = (predictions[f"{branch}_top1"] == predictions["label"]).to_numpy()
    reference_N = (predictions[f"{reference}_top1"] == predictions["label"]).to_numpy()
    outcome_N = np.select([right_N & ~reference_N, ~right_N & reference_N], [0, 1], default=2)
    return _group_intervals(predictions, outcome_N, (1, -1, 0), shots)


def intervals(predictions: pd.DataFrame, shots: Sequence[str]) -> Intervals:
    """An interval for every branch and group, and for the gain of the model's answer over zero-shot and base."""
    branches = recorded_branches(predictions)
    final = final_branch(predictions)
    accuracy = {branch: accuracy_intervals(predictions, branch, shots) for branch in branches}
    return Intervals(
        method="percentile bootstrap over test images, stratified by class",
        level=LEVEL,
        resamplings=RESAMPLINGS,
        seed=SEED,
        accuracy=accuracy | {"fused": accuracy[final]},
        gain_of_fused={
            reference: gain_intervals(predictions, final, reference, shots) for reference in ("zero_shot", "base")
        },
    )


def _group_intervals(
    predictions: pd.DataFrame, outcome_N: np.ndarray, value_K: Sequence[float], shots: Sequence[str]
) -> dict[str, Interval]:
    outcomes = len(value_K)
    flat_N = predictions["label"].to_numpy() * outcomes + outcome_N
    count_CK = np.bincount(flat_N, minlength=len(shots) * outcomes).reshape(len(shots), outcomes)
    tested = group_members(shots, count_CK.sum(axis=1) > 0)
    members = {group: indices.tolist() for group, indices in tested.items()}
    means = bootstrap_means(count_CK, value_K, members, resamplings=RESAMPLINGS, seed=SEED)
    tail = (1 - LEVEL) / 2
    return {group: tuple(np.quantile(mean_S, [tail, 1 - tail]).tolist()) for group, mean_S in means.items()}
