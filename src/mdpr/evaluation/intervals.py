"""Confidence intervals of what is computed from the classes' recalls (see `mdpr.bootstrap`).

An interval speaks of the choice of test images alone, not of the training seed. It is the percentile interval;
where every image of every class has the same outcome it has no width. Figures that count images one by one (top-1,
top-5, macro F1, calibration, NLL) have none.

Shapes: N test images, C classes, K outcomes, S resamplings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from mdpr.artifacts import Intervals
from mdpr.bootstrap import bootstrap_means, drawn_counts
from mdpr.evaluation.metrics import group_members
from mdpr.evaluation.predictions import final_branch, recorded_branches

LEVEL = 0.95
RESAMPLINGS = 2000
SEED = 0

Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]  # recalls (S, C) -> S values


def accuracy_intervals(
    predictions: pd.DataFrame, branch: str, shots: Sequence[str], resamplings: int = RESAMPLINGS
) -> dict[str, Interval]:
    """Intervals of a branch's class-balanced accuracies, gap, worst class and means over classes, as fractions."""
    correct_N = (predictions[f"{branch}_top1"] == predictions["label"]).to_numpy()
    count_CK = outcome_counts(predictions["label"].to_numpy(), np.where(correct_N, 0, 1), len(shots), 2)
    tested = np.flatnonzero(count_CK.sum(axis=1))
    statistics = recall_statistics([shots[index] for index in tested.tolist()])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    image_C = count_CK[tested].sum(axis=1)
    for drawn_SCK in drawn_counts(count_CK[tested], resamplings=resamplings, seed=SEED):
        recall_SC = drawn_SCK[:, :, 0] / image_C
        for name, statistic in statistics.items():
            parts[name].append(statistic(recall_SC))
    return {name: percentile_interval(np.concatenate(part)) for name, part in parts.items()}


def recall_statistics(shots: Sequence[str]) -> dict[str, Statistic]:
    """Figure -> function from recalls (S, C) of tested classes to its S values; what cannot be had is left out."""
    members = group_members(shots, np.ones(len(shots), dtype=bool))
    statistics: dict[str, Statistic] = {group: partial(_mean_over, indices) for group, indices in members.items()}
    if "many" in members and "few" in members:
        many, few = statistics["many"], statistics["few"]
        statistics["head_tail_gap"] = lambda recall_SC: many(recall_SC) - few(recall_SC)
    return statistics | {
        "worst_class": lambda recall_SC: recall_SC.min(axis=1),
        "harmonic_mean": _harmonic_means,
        "geometric_mean": _geometric_means,
    }


def gain_intervals(
    predictions: pd.DataFrame, branch: str, reference: str, shots: Sequence[str], resamplings: int = RESAMPLINGS
) -> dict[str, Interval]:
    """Intervals of accuracy(branch) - accuracy(reference) on the same images: paired, so narrower than two."""
    right_N = (predictions[f"{branch}_top1"] == predictions["label"]).to_numpy()
    reference_N = (predictions[f"{reference}_top1"] == predictions["label"]).to_numpy()
    mean_S = paired_differences(predictions["label"].to_numpy(), right_N, reference_N, shots, resamplings)
    return {group: percentile_interval(values) for group, values in mean_S.items()}


def paired_differences(
    label_N: np.ndarray, right_N: np.ndarray, reference_N: np.ndarray, shots: Sequence[str], resamplings: int
) -> dict[str, np.ndarray]:
    """S resampled differences of class-balanced accuracy, right minus reference, for every group that exists."""
    outcome_N = np.select([right_N & ~reference_N, ~right_N & reference_N], [0, 1], default=2)
    count_CK = outcome_counts(label_N, outcome_N, len(shots), 3)
    tested = group_members(shots, count_CK.sum(axis=1) > 0)
    members = {group: indices.tolist() for group, indices in tested.items()}
    return bootstrap_means(count_CK, (1, -1, 0), members, resamplings=resamplings, seed=SEED)


def intervals(predictions: pd.DataFrame, shots: Sequence[str], resamplings: int = RESAMPLINGS) -> Intervals:
    """An interval for every branch and figure, and for the gain of the model's answer over zero-shot and base."""
    final = final_branch(predictions)
    accuracy: Mapping[str, dict[str, Interval]] = {
        branch: accuracy_intervals(predictions, branch, shots, resamplings) for branch in recorded_branches(predictions)
    }
    return Intervals(
        method="percentile bootstrap over test images, stratified by class",
        level=LEVEL,
        resamplings=resamplings,
        seed=SEED,
        accuracy={**accuracy, "fused": accuracy[final]},
        gain_of_fused={
            reference: gain_intervals(predictions, final, reference, shots, resamplings)
            for reference in ("zero_shot", "base")
        },
    )


def outcome_counts(label_N: np.ndarray, outcome_N: np.ndarray, classes: int, outcomes: int) -> np.ndarray:
    """Images of each class with each outcome, (C, K)."""
    return np.bincount(label_N * outcomes + outcome_N, minlength=classes * outcomes).reshape(classes, outcomes)


def percentile_interval(value_S: np.ndarray) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(value_S, [tail, 1 - tail]).tolist()
    return low, high


def _mean_over(indices: np.ndarray, recall_SC: np.ndarray) -> np.ndarray:
    mean_S: np.ndarray = recall_SC[:, indices].mean(axis=1)
    return mean_S


def _harmonic_means(recall_SC: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # 1 / 0 is infinity, and 1 over that the 0 we mean
        return recall_SC.shape[1] / (1 / recall_SC).sum(axis=1)


def _geometric_means(recall_SC: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # exp(log(0)) is 0
        return np.exp(np.log(recall_SC).mean(axis=1))
