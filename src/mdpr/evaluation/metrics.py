"""The figures of a branch, as pure functions of its predictions: accuracies (fractions, 0..1) and calibration.

Long-tailed accuracy is class-balanced: `all` is the mean over classes of each class's recall, so that every class
counts alike in a long-tailed test set; many, medium and few are that mean over the classes of a shot group. A class
without a test image has no recall (NaN in arrays) and enters no mean; a group without such a recall is absent from the
result, never 0. Calibration bins are of equal width, (a, b], the first one closed.

Shapes: N test images, B images in a batch, C classes, K bins, k best classes, S resamplings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mdpr.artifacts import SHOT_GROUPS
from mdpr.evaluation.predictions import final_branch, is_right, recorded_branches
from mdpr.evaluation.score_table import BASELINES, Metrics

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATION_BINS = 15


def class_recall(label_N: np.ndarray, top1_N: np.ndarray, class_count: int) -> np.ndarray:
    """Recall of each class, (C,) float64; NaN if a class has no image."""
    image_C = np.bincount(label_N, minlength=class_count)
    correct_C = np.bincount(label_N[label_N == top1_N], minlength=class_count)
    return np.divide(correct_C, image_C, out=np.full(class_count, np.nan), where=image_C > 0)


def group_members(shots: Sequence[str], usable_C: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the usable classes of `all` and of each shot group; groups without one are left out."""
    shot_C = np.asarray(shots)
    masks = {"all": usable_C} | {group: usable_C & (shot_C == group) for group in SHOT_GROUPS}
    return {group: np.flatnonzero(mask_C) for group, mask_C in masks.items() if mask_C.any()}


def group_means(value_C: np.ndarray, shots: Sequence[str]) -> dict[str, float]:
    """Mean over the classes of `all`, many, medium and few; NaN classes and empty groups are left out."""
    members = group_members(shots, ~np.isnan(value_C))
    return {group: float(value_C[indices].mean()) for group, indices in members.items()}


def harmonic_mean(recall_SC: np.ndarray) -> np.ndarray:
    """Over the last axis: near the worst class, and 0 as soon as one class is never found. No recall may be NaN."""
    with np.errstate(divide="ignore"):  # 1 / 0 is infinity, and 1 over that the 0 that is meant
        return np.asarray(recall_SC.shape[-1] / (1 / recall_SC).sum(axis=-1))


def geometric_mean(recall_SC: np.ndarray) -> np.ndarray:
    """Over the last axis; 0 as soon as one class is never found. No recall may be NaN."""
    with np.errstate(divide="ignore"):  # exp(log(0)) is 0
        return np.asarray(np.exp(np.log(recall_SC).mean(axis=-1)))


# Figures of the recalls (S, C) of tested classes that are no plain means, for S resamplings or for one row.
RECALL_FIGURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "worst_class": lambda recall_SC: recall_SC.min(axis=-1),
    "harmonic_mean": harmonic_mean,
    "geometric_mean": geometric_mean,
}


def negative_log_likelihood(true_probability_N: np.ndarray) -> float:
    """Mean of -log p(label), in nats; probabilities below float32's normal range count as its lower end."""
    probability_N = np.maximum(true_probability_N.astype(np.float64), np.finfo(np.float32).tiny)
    return float(-np.log(probability_N).mean())


def score_branch(predictions: pd.DataFrame, branch: str, shots: Sequence[str]) -> dict[str, float]:
    """Every figure of one branch. `shots` is the shot group of each class, in order of index.

    Keys: all, many, medium, few (those that exist), head_tail_gap (many - few, if both exist), worst_class,
    harmonic_mean, geometric_mean, top1, top5 (over images, not class-balanced), macro_f1 (over classes with a test
    image), ece, nll.
    """
    from sklearn.metrics import f1_score  # tune, which reads this module too, does without

    label_N = predictions["label"].to_numpy()
    top1_N, right_N = predictions[f"{branch}_top1"].to_numpy(), is_right(predictions, branch)
    top5_Nk = np.stack(list(predictions[f"{branch}_top5"]))
    recall_C = class_recall(label_N, top1_N, len(shots))
    scores = group_means(recall_C, shots)
    if "many" in scores and "few" in scores:
        scores["head_tail_gap"] = scores["many"] - scores["few"]
    tested_C = recall_C[~np.isnan(recall_C)]
    scores |= {name: float(figure(tested_C)) for name, figure in RECALL_FIGURES.items()}
    return scores | {
        "top1": float(right_N.mean()),
        "top5": float((top5_Nk == label_N[:, None]).any(axis=1).mean()),
        "macro_f1": float(f1_score(label_N, top1_N, labels=np.unique(label_N), average="macro", zero_division=0)),
        "ece": expected_calibration_error(predictions[f"{branch}_probability"].to_numpy(), right_N),
        "nll": negative_log_likelihood(predictions[f"{branch}_true_probability"].to_numpy()),
    }


def score(predictions: pd.DataFrame, shots: Sequence[str], classwise_ece: Mapping[str, float]) -> Metrics:
    """`score_branch` of every recorded branch with its `classwise_ece`, and always of `fused`, the model's answer.

    With routing off the fused prediction is the base prediction, and so are its figures; readers of `fused` (the
    gate, `dvc metrics diff` between two settings) need not know the difference.
    """
    scores = {
        branch: score_branch(predictions, branch, shots) | {"classwise_ece": classwise_ece[branch]}
        for branch in recorded_branches(predictions)
    }
    return scores | baseline_scores(predictions, shots) | {"fused": scores[final_branch(predictions)]}


def baseline_scores(predictions: pd.DataFrame, shots: Sequence[str]) -> dict[str, dict[str, float]]:
    """Class-balanced accuracies by group: of chance, and of every baseline that `predictions` holds."""
    label_N = predictions["label"].to_numpy()
    groups = group_members(shots, np.bincount(label_N, minlength=len(shots)) > 0)
    return {"chance": dict.fromkeys(groups, 1 / len(shots))} | {
        name: group_means(class_recall(label_N, predictions[f"{name}_top1"].to_numpy(), len(shots)), shots)
        for name in BASELINES
        if f"{name}_top1" in predictions
    }


def bin_of(probability_N: np.ndarray) -> np.ndarray:
    """The calibration bin of each probability, 0 to K - 1."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    return np.clip(np.digitize(probability_N, edges, right=True) - 1, 0, CALIBRATION_BINS - 1)


def expected_calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """ECE of the best class (Guo et al., ICML 2017, equation 3)."""
    gap_N = correct_N - confidence_N.astype(np.float64)
    gap_K = np.bincount(bin_of(confidence_N), weights=gap_N, minlength=CALIBRATION_BINS)
    return float(np.abs(gap_K).sum() / len(confidence_N))


def reliability(confidence_N: np.ndarray, correct_N: np.ndarray) -> pd.DataFrame:
    """One row per bin that has an image: low, high, images, mean confidence, accuracy."""
    bin_N = bin_of(confidence_N)
    image_K = np.bincount(bin_N)
    used = np.flatnonzero(image_K)
    confidence_K, correct_K = (np.bincount(bin_N, weights=value_N) for value_N in (confidence_N, correct_N))
    return pd.DataFrame(
        {
            "low": used / CALIBRATION_BINS,
            "high": (used + 1) / CALIBRATION_BINS,
            "images": image_K[used],
            "confidence": confidence_K[used] / image_K[used],
            "accuracy": correct_K[used] / image_K[used],
        }
    )


class ClasswiseCalibration:
    """Classwise ECE, batch by batch: the mean over classes of the ECE of "is it class c", each with all images.

    It needs every class's probability of every image, which no table keeps; sums per class and bin are enough.
    Source: Kull et al., NeurIPS 2019, equation 3 (also: static calibration error, Nixon et al., 2019).
    """

    def __init__(self) -> None:
        self._images = 0
        self._gap_CK: Tensor | None = None

    def add(self, label_B: Tensor, log_probability_BC: Tensor) -> None:
        """Count a batch: labels (B,) and log-probabilities (B, C)."""
        import torch  # the gate imports this module without torch

        label_B, probability_BC = label_B.cpu(), log_probability_BC.detach().cpu().double().exp()
        if self._gap_CK is None:
            self._gap_CK = probability_BC.new_zeros(probability_BC.shape[1], CALIBRATION_BINS)
        # Of many classes all but a few probabilities of an image lie in the first bin: only the others are sorted.
        edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64)

        def place_of(probability: Tensor) -> Tensor:
            return (torch.bucketize(probability, edges) - 1).clamp(0, CALIBRATION_BINS - 1)

        self._gap_CK[:, 0] -= probability_BC.sum(dim=0)
        image_H, class_H = (probability_BC > edges[1]).nonzero(as_tuple=True)
        high_H = probability_BC[image_H, class_H]
        true_B = probability_BC.gather(1, label_B[:, None])[:, 0]
        gaps = (
            (class_H, torch.zeros_like(class_H), high_H),
            (class_H, place_of(high_H), -high_H),
            (label_B, place_of(true_B), torch.ones_like(true_B)),
        )
        for index, place, gap in gaps:
            self._gap_CK.index_put_((index, place), gap, accumulate=True)
        self._images += len(label_B)

    def error(self) -> float:
        """The classwise ECE of everything added."""
        assert self._gap_CK is not None, "no batch was added"
        return float(self._gap_CK.abs().sum() / (self._images * len(self._gap_CK)))
