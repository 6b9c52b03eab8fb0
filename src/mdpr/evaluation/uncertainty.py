"""Uncertainty over the choice of test images: bounds of class-balanced means, and the one bootstrap for all else.

A class-balanced mean (an accuracy, or a paired difference of two) gets Clopper-Pearson bounds with an effective number
of images: the number that would give a plain share the variance of this mean (Korn and Graubard, Survey Methodology 24,
1998). They hold from one image per class upwards, where resampling shows no spread at all. Each class's variance is
estimated from its own outcomes and, as much as it has few images, from those of its whole group. benchmarks/coverage.py
measures how often the bounds hold.

Figures that are no means (worst class, harmonic and geometric mean, slopes, correlations) are bootstrapped. A
resampling draws n_c of a class's n_c images with replacement, which makes the counts of their outcomes multinomial. So
counts are drawn, not images (percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13). With few images per class the intervals of worst class, harmonic and geometric mean are too narrow. Slopes
and correlations are drawn with smoothed chances instead of a class's own shares: from one image per class upwards a
slope's interval is about the slope, a correlation's about what as many test images show on average. Figures
that count images one by one (top-1, macro F1, calibration, NLL) have none. No interval says anything about other
training seeds.

The two biases are slopes and rank correlations of a class's accuracy:

    by_count       per tenfold training images (log10 of the count, at least 1)
    by_prior       per tenfold estimated pre-training share (the probe's hidden prior)
    by_zero_shot   per point of the frozen model's zero-shot accuracy on the same test images: 1 hands its bias on
                   unchanged, 0 leaves nothing of it

A slope of 0 treats classes alike. Intervals are centred on the estimate; both accuracies of by_zero_shot are drawn
together. With few test images per class the estimates of correlations and of by_zero_shot are too near 0; that is not
corrected. A slope or correlation that does not exist (all counts equal, all recalls equal, one class) is None.

Shapes: N test images, C classes (tested ones only for the biases), K outcomes, S resamplings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta, rankdata

from mdpr.artifacts import Bias, Biases, Intervals
from mdpr.evaluation.metrics import RECALL_FIGURES, group_members
from mdpr.evaluation.predictions import final_branch, is_right, recorded_branches
from mdpr.evaluation.score_table import BASELINES, Interval

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
RESAMPLINGS = 2000
SEED = 0
DRAWN_AT_ONCE = 3_000_000  # counts held in memory at one time, 8 bytes each; the result does not depend on it
SMOOTHING = 1.0  # images of each outcome that are added to a group, in estimates of variance only
BORROWED_IMAGES = 5.0  # of its group's outcomes, that each class's variance counts beside its own
MOST_BORROWED = 20.0  # times the images of a class, where classes look alike
TRUSTED_IMAGES = 10.0  # per class: with so many, half of what classes differ by is believed
ROUNDING = 1e-9

Relation = dict[str, np.ndarray]  # slope and correlation, S values each
RANGES: dict[str, Interval] = {"slope": (-np.inf, np.inf), "correlation": (-1.0, 1.0)}


def drawn_counts(
    count_CK: np.ndarray, *, resamplings: int, seed: int, chance_CK: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Resampled outcome counts in blocks (S', C, K) that make up `resamplings` S; every class must have an image.

    Outcomes are drawn with each class's own shares of them, or with `chance_CK`.
    """
    image_C = count_CK.sum(axis=1)
    share_CK = count_CK / image_C[:, None] if chance_CK is None else chance_CK
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // max(1, share_CK.size))
    for start in range(0, resamplings, at_once):
        yield rng.multinomial(image_C, share_CK, size=(min(at_once, resamplings - start), len(image_C)))


@dataclass(frozen=True)
class EffectiveShare:
    """A class-balanced mean as a share of images: `share` of `images` (not whole), on a scale from `low` to `high`."""

    share: float
    images: float
    low: float
    high: float

    @property
    def mean(self) -> float:
        return self.low + (self.high - self.low) * self.share

    def bounds(self, tail: float) -> Interval:
        """The lower and the upper bound; each is wrong with a probability of about `tail` at most."""
        lower, upper = share_bounds(np.asarray(self.share), np.asarray(self.images), tail)
        return self.low + (self.high - self.low) * float(lower), self.low + (self.high - self.low) * float(upper)

    def p_value(self, mean: float = 0.0) -> float:
        """Two-sided p of the hypothesis that the true mean is `mean`: the level at which a bound reaches it."""
        hits, misses = self.share * self.images, (1 - self.share) * self.images
        at = (mean - self.low) / (self.high - self.low)
        below = float(beta.cdf(at, hits, misses + 1)) if hits > ROUNDING else 1.0
        above = float(beta.sf(at, hits + 1, misses)) if misses > ROUNDING else 1.0
        return min(1.0, 2 * min(below, above))


def effective_shares(
    count_CK: np.ndarray, value_K: Sequence[float], members: Mapping[str, np.ndarray | Sequence[int]]
) -> dict[str, EffectiveShare]:
    """Each group's class-balanced mean outcome.

    count_CK[c, k] is the number of class c's images with outcome k, worth value_K[k]; `members` maps a group to its
    class indices. Classes without an image do not count; a group without an image is left out.
    """
    low, high = min(value_K), max(value_K)
    unit_K = (np.asarray(value_K, dtype=np.float64) - low) / (high - low)
    found = {}
    for group, indices in members.items():
        count_cK = count_CK[np.asarray(indices)]
        count_cK = count_cK[count_cK.sum(axis=1) > 0]
        if len(count_cK):
            share, images = class_balanced_share(count_cK, unit_K)
            found[group] = EffectiveShare(float(share), float(images), float(low), float(high))
    return found


def class_balanced_share(count_SCK: np.ndarray, unit_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class-balanced mean of outcomes worth `unit_K`, 0 to 1, and its effective number of images.

    Every class must have an image. Leading axes of the counts, none or some, are those of the results.
    """
    image_SC = count_SCK.sum(axis=-1)
    images_S1, classes = image_SC.sum(axis=-1, keepdims=True), count_SCK.shape[-2]
    share_S = (count_SCK @ unit_K / image_SC).mean(axis=-1)
    chance_SCK = smoothed_chances(count_SCK)
    variance_SC = chance_SCK @ unit_K**2 - (chance_SCK @ unit_K) ** 2
    # Exact on average if all classes are alike; too large, never too small, if they differ.
    variance_SC = variance_SC / (1 - image_SC / (image_SC + BORROWED_IMAGES) ** 2)
    mean_SK = chance_SCK.mean(axis=-2)
    mean_S = mean_SK @ unit_K
    alike_S = (mean_SK @ unit_K**2 - mean_S**2) * (1 / image_SC).sum(axis=-1) / classes**2
    differ_S = (variance_SC / image_SC).sum(axis=-1) / classes**2
    # From a variance to the images of a plain share that has it; `trust`: how well few images show that classes differ.
    trust_S = images_S1[..., 0] / (images_S1[..., 0] + TRUSTED_IMAGES * classes)
    images_S = mean_S * (1 - mean_S) * ((1 - trust_S) / alike_S + trust_S / differ_S)
    return share_S, images_S


def smoothed_chances(count_SCK: np.ndarray, borrowed_images: float = BORROWED_IMAGES) -> np.ndarray:
    """Each class's chances of the outcomes: its own images, and as if of `borrowed_images` more its group's."""
    image_SC1 = count_SCK.sum(axis=-1, keepdims=True)
    images_S11 = image_SC1.sum(axis=-2, keepdims=True)
    # No outcome is impossible because the few images of a group do not show it.
    smooth_SCK = count_SCK * images_S11 + SMOOTHING * image_SC1
    smooth_SCK = smooth_SCK / (images_S11 + SMOOTHING * count_SCK.shape[-1])
    pooled_S1K = smooth_SCK.sum(axis=-2, keepdims=True) / images_S11
    chance_SCK: np.ndarray = (smooth_SCK + borrowed_images * pooled_S1K) / (image_SC1 + borrowed_images)
    return chance_SCK


def images_to_borrow(right_C: np.ndarray, image_C: np.ndarray) -> float:
    """How many images of its group say as much about a class as the group's spread does: the more alike, the more.

    The sum of the parameters of a beta distribution of the classes' accuracies, by its moments. Classes of one image
    each do not show their spread: then `BORROWED_IMAGES`.
    """
    several_C = image_C > 1
    if several_C.sum() < 2:
        return BORROWED_IMAGES
    recall_C, image_C = right_C[several_C] / image_C[several_C], image_C[several_C]
    noise_C = recall_C * (1 - recall_C) * image_C / (image_C - 1)
    spread = max(0.0, float(recall_C.var(ddof=1) - (noise_C / image_C).mean()))
    most = MOST_BORROWED * float(image_C.mean())
    return float(np.clip(noise_C.mean() / spread, 1, most)) if spread > 0 else most


def share_bounds(share_S: np.ndarray, images_S: np.ndarray, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Clopper-Pearson bounds of shares of a number of images that need not be whole."""
    hits_S, misses_S = share_S * images_S, (1 - share_S) * images_S
    lower_S = np.where(hits_S > ROUNDING, beta.ppf(tail, np.maximum(hits_S, ROUNDING), misses_S + 1), 0.0)
    upper_S = np.where(misses_S > ROUNDING, beta.ppf(1 - tail, hits_S + 1, np.maximum(misses_S, ROUNDING)), 1.0)
    return lower_S, upper_S


def accuracy_intervals(
    predictions: pd.DataFrame, branch: str, shots: Sequence[str], resamplings: int = RESAMPLINGS
) -> dict[str, Interval]:
    """Intervals of a branch's class-balanced accuracies, gap, worst class and means over classes, as fractions."""
    outcome_N = np.where(is_right(predictions, branch), 0, 1)
    count_CK = outcome_counts(predictions["label"].to_numpy(), outcome_N, len(shots), 2)
    tested_CK = count_CK[count_CK.sum(axis=1) > 0]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in RECALL_FIGURES}
    for drawn_SCK in drawn_counts(tested_CK, resamplings=resamplings, seed=SEED):
        recall_SC = drawn_SCK[:, :, 0] / tested_CK.sum(axis=1)
        for name, figure in RECALL_FIGURES.items():
            parts[name].append(figure(recall_SC))
    shares = effective_shares(count_CK, (1, 0), group_members(shots, count_CK.sum(axis=1) > 0))
    found = {group: share.bounds(TAIL) for group, share in shares.items()}
    if "many" in shares and "few" in shares:
        many, few = ((shares[group].share, found[group]) for group in ("many", "few"))
        found["head_tail_gap"] = _difference_interval(*many, *few)
    for name, part in parts.items():
        low, high = np.quantile(np.concatenate(part), [TAIL, 1 - TAIL]).tolist()
        found[name] = (low, high)
    return found


def _difference_interval(first: float, first_bounds: Interval, second: float, second_bounds: Interval) -> Interval:
    """The interval of a difference of two independent shares (Newcombe, Statistics in Medicine 17, 1998)."""
    down = math.hypot(first - first_bounds[0], second_bounds[1] - second)
    up = math.hypot(first_bounds[1] - first, second - second_bounds[0])
    return first - second - down, first - second + up


def gain_intervals(predictions: pd.DataFrame, branch: str, reference: str, shots: Sequence[str]) -> dict[str, Interval]:
    """Intervals of accuracy(branch) - accuracy(reference) on the same images: paired, so narrower than two."""
    right_N, reference_N = is_right(predictions, branch), is_right(predictions, reference)
    found = paired_differences(predictions["label"].to_numpy(), right_N, reference_N, shots)
    return {group: share.bounds(TAIL) for group, share in found.items()}


def paired_differences(
    label_N: np.ndarray, right_N: np.ndarray, reference_N: np.ndarray, shots: Sequence[str]
) -> dict[str, EffectiveShare]:
    """The difference of class-balanced accuracy, right minus reference, of every group that exists."""
    outcome_N = np.select([right_N & ~reference_N, ~right_N & reference_N], [0, 1], default=2)
    count_CK = outcome_counts(label_N, outcome_N, len(shots), 3)
    return effective_shares(count_CK, (1, -1, 0), group_members(shots, count_CK.sum(axis=1) > 0))


def intervals(predictions: pd.DataFrame, shots: Sequence[str], resamplings: int = RESAMPLINGS) -> Intervals:
    """An interval for every branch and figure, and for the gain of the model's answer over zero-shot and base."""
    final = final_branch(predictions)
    branches = recorded_branches(predictions)
    accuracy = {branch: accuracy_intervals(predictions, branch, shots, resamplings) for branch in branches}
    return Intervals(
        method="means: Clopper-Pearson with effective images; all else: percentile bootstrap over test images by class",
        level=LEVEL,
        resamplings=resamplings,
        seed=SEED,
        accuracy={**accuracy, "fused": accuracy[final]},
        gain_of_fused={
            reference: gain_intervals(predictions, final, reference, shots)
            for reference in ("zero_shot", "base", *BASELINES)
            if f"{reference}_top1" in predictions
        },
    )


def outcome_counts(label_N: np.ndarray, outcome_N: np.ndarray, classes: int, outcomes: int) -> np.ndarray:
    """Images of each class with each outcome, (C, K)."""
    return np.bincount(label_N * outcomes + outcome_N, minlength=classes * outcomes).reshape(classes, outcomes)


def biases(
    predictions: pd.DataFrame,
    train_images: Sequence[int],
    log_prior_C: np.ndarray,
    resamplings: int = RESAMPLINGS,
) -> Biases:
    """Slopes and rank correlations of every branch. `train_images` and `log_prior_C` are in order of class index."""
    label_N = predictions["label"].to_numpy()
    frozen_N = is_right(predictions, "zero_shot")
    tested = np.flatnonzero(np.bincount(label_N, minlength=len(train_images)))
    fixed = {
        "by_count": np.log10(np.maximum(np.asarray(train_images, dtype=float)[tested], 1)),
        "by_prior": np.asarray(log_prior_C, dtype=float)[tested] / np.log(10),
    }
    found: dict[str, dict[str, Bias]] = {}
    for branch in recorded_branches(predictions):
        outcome_N = 2 * (~is_right(predictions, branch)).astype(np.int64) + ~frozen_N
        count_C4 = outcome_counts(label_N, outcome_N, len(train_images), 4)[tested]
        found[branch] = branch_biases(count_C4, fixed, resamplings, by_zero_shot=branch != "zero_shot")
    return Biases(level=LEVEL, resamplings=resamplings, seed=SEED, branches=found)


def branch_biases(
    count_C4: np.ndarray, fixed: Mapping[str, np.ndarray], resamplings: int, *, by_zero_shot: bool = True
) -> dict[str, Bias]:
    """A branch's slopes and correlations on each of `fixed` (C,), and by_zero_shot.

    count_C4 are each class's images by outcome: both right, only the branch, only the frozen model, none.
    """

    def relations(count_SC4: np.ndarray) -> dict[str, Relation]:
        image_SC = count_SC4.sum(axis=2)
        own_SC = (count_SC4[..., 0] + count_SC4[..., 1]) / image_SC
        x = {name: x_C[None] for name, x_C in fixed.items()}
        if by_zero_shot:
            x["by_zero_shot"] = (count_SC4[..., 0] + count_SC4[..., 2]) / image_SC
        rank_SC = rankdata(own_SC, axis=1)
        return {
            name: {"slope": slopes(x_SC, own_SC), "correlation": correlations(rankdata(x_SC, axis=1), rank_SC)}
            for name, x_SC in x.items()
        }

    # With its own shares a class of one image would be drawn the same each time.
    chance_C4 = smoothed_chances(count_C4, images_to_borrow(count_C4[:, 0] + count_C4[:, 1], count_C4.sum(axis=1)))
    blocks = drawn_counts(count_C4, resamplings=resamplings, seed=SEED, chance_CK=chance_C4)
    estimate, drawn = relations(count_C4[None]), [relations(block) for block in blocks]
    return {name: _bias(estimate[name], [part[name] for part in drawn]) for name in estimate}


def slopes(x_SC: np.ndarray, y_SC: np.ndarray) -> np.ndarray:
    """Least-squares slope of y on x in every row; NaN if x has no spread. One row of x serves all."""
    x_SC = x_SC - x_SC.mean(axis=1, keepdims=True)
    covariance_S = (x_SC * (y_SC - y_SC.mean(axis=1, keepdims=True))).sum(axis=1)
    variance_S = np.broadcast_to((x_SC**2).sum(axis=1), covariance_S.shape)
    return np.divide(covariance_S, variance_S, out=np.full(len(y_SC), np.nan), where=variance_S > 0)


def correlations(x_SC: np.ndarray, y_SC: np.ndarray) -> np.ndarray:
    """Pearson's correlation of every row; NaN if x or y has no spread."""
    x_SC, y_SC = (values - values.mean(axis=1, keepdims=True) for values in (x_SC, y_SC))
    norm_S = np.sqrt((x_SC**2).sum(axis=1) * (y_SC**2).sum(axis=1))
    return np.divide((x_SC * y_SC).sum(axis=1), norm_S, out=np.full(len(y_SC), np.nan), where=norm_S > 0)


def _bias(estimate: Relation, drawn: Sequence[Relation]) -> Bias:
    """The estimate (one value each) and its intervals from the blocks of resamplings."""
    values: dict[str, float | tuple[float, float] | None] = {}
    for name, (value,) in estimate.items():
        drawn_S = np.concatenate([part[name] for part in drawn])
        known_S = drawn_S[~np.isnan(drawn_S)]
        exists = not np.isnan(value) and len(known_S)
        values[name] = float(value) if exists else None
        values[f"{name}_interval"] = _interval(float(value), known_S, RANGES[name]) if exists else None
    return Bias.model_validate(values)


def _interval(value: float, drawn_S: np.ndarray, bounds: Interval) -> Interval:
    """The percentile interval, moved by the mean difference of the resamplings from `value`, within `bounds`.

    Drawing adds the noise of the test images once more, which pulls correlations and slopes on a noisy x towards 0.
    """
    low, high = (np.quantile(drawn_S, [TAIL, 1 - TAIL]) - drawn_S.mean() + value).clip(*bounds).tolist()
    return low, high
