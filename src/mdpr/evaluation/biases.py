"""The two biases, measured: how a class's accuracy goes with its training count, and with what the frozen model knew.

    by_count       per tenfold training images (log10 of the count, at least 1)
    by_prior       per tenfold estimated pre-training share (the probe's hidden prior)
    by_zero_shot   per point of the frozen model's zero-shot accuracy on the same test images: 1 is a bias handed on
                   whole, 0 none of it left

A slope of 0 treats classes alike. Intervals are bootstrap over test images, stratified by class and centred on the
estimate; both accuracies of by_zero_shot are drawn together. With few test images a class the estimates of correlations
and of by_zero_shot are themselves too near 0: that is not corrected. A slope or correlation that does not exist (all
counts equal, all recalls equal, one class) is None.

Shapes: N test images, C tested classes, S resamplings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from mdpr.artifacts import Bias, Biases
from mdpr.bootstrap import drawn_counts
from mdpr.evaluation.intervals import LEVEL, RESAMPLINGS, SEED, outcome_counts
from mdpr.evaluation.predictions import recorded_branches


def biases(
    predictions: pd.DataFrame,
    train_images: Sequence[int],
    log_prior_C: np.ndarray,
    resamplings: int = RESAMPLINGS,
) -> Biases:
    """Slopes and rank correlations of every branch. `train_images` and `log_prior_C` are in order of class index."""
    label_N = predictions["label"].to_numpy()
    frozen_N = (predictions["zero_shot_top1"] == predictions["label"]).to_numpy()
    tested = np.flatnonzero(np.bincount(label_N, minlength=len(train_images)))
    fixed = {
        "by_count": np.log10(np.maximum(np.asarray(train_images, dtype=float)[tested], 1)),
        "by_prior": np.asarray(log_prior_C, dtype=float)[tested] / np.log(10),
    }
    found: dict[str, dict[str, Bias]] = {}
    for branch in recorded_branches(predictions):
        right_N = (predictions[f"{branch}_top1"] == predictions["label"]).to_numpy()
        outcome_N = 2 * (~right_N).astype(np.int64) + (~frozen_N).astype(np.int64)
        count_C4 = outcome_counts(label_N, outcome_N, len(train_images), 4)[tested]
        own_1C, frozen_1C = _recalls(count_C4[None])
        drawn = [_recalls(block) for block in drawn_counts(count_C4, resamplings=resamplings, seed=SEED)]
        own_SC, frozen_SC = (np.concatenate(part) for part in zip(*drawn, strict=True))
        found[branch] = {name: _bias(own_1C, own_SC, x_C[None], x_C[None]) for name, x_C in fixed.items()}
        if branch != "zero_shot":
            found[branch]["by_zero_shot"] = _bias(own_1C, own_SC, frozen_1C, frozen_SC)
    return Biases(level=LEVEL, resamplings=resamplings, seed=SEED, branches=found)


def slopes(x_SC: np.ndarray, y_SC: np.ndarray) -> np.ndarray:
    """Least-squares slope of y on x in every row; NaN where x has no spread. One row of x serves all."""
    x_SC = x_SC - x_SC.mean(axis=1, keepdims=True)
    covariance_S = (x_SC * (y_SC - y_SC.mean(axis=1, keepdims=True))).sum(axis=1)
    variance_S = np.broadcast_to((x_SC**2).sum(axis=1), covariance_S.shape)
    return np.divide(covariance_S, variance_S, out=np.full(len(y_SC), np.nan), where=variance_S > 0)


def rank_correlations(x_SC: np.ndarray, y_SC: np.ndarray) -> np.ndarray:
    """Spearman's correlation of every row, ties by mean rank; NaN where x or y has no spread."""
    ranks = [rankdata(values, axis=1) for values in (x_SC, y_SC)]
    x_SC, y_SC = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    norm_S = np.sqrt((x_SC**2).sum(axis=1) * (y_SC**2).sum(axis=1))
    return np.divide((x_SC * y_SC).sum(axis=1), norm_S, out=np.full(len(y_SC), np.nan), where=norm_S > 0)


def _recalls(count_SC4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recalls (S, C) of the branch and of the frozen model. Outcomes: both right, branch alone, frozen alone, none."""
    image_SC = count_SC4.sum(axis=2)
    return (count_SC4[..., 0] + count_SC4[..., 1]) / image_SC, (count_SC4[..., 0] + count_SC4[..., 2]) / image_SC


def _bias(y_1C: np.ndarray, y_SC: np.ndarray, x_1C: np.ndarray, x_SC: np.ndarray) -> Bias:
    values: dict[str, float | tuple[float, float] | None] = {}
    for name, statistic in (("slope", slopes), ("correlation", rank_correlations)):
        value = statistic(x_1C, y_1C)[0]
        drawn_S = statistic(x_SC, y_SC)
        known_S = drawn_S[~np.isnan(drawn_S)]
        exists = not np.isnan(value) and len(known_S)
        values[name] = float(value) if exists else None
        values[f"{name}_interval"] = _interval(float(value), known_S) if exists else None
    return Bias.model_validate(values)


def _interval(value: float, drawn_S: np.ndarray) -> tuple[float, float]:
    """The percentile interval, moved by the mean difference of the resamplings from `value`.

    Drawing adds the noise of the test images once more, which pulls correlations and slopes on a noisy x towards 0.
    """
    tail = (1 - LEVEL) / 2
    low, high = (np.quantile(drawn_S, [tail, 1 - tail]) - drawn_S.mean() + value).tolist()
    return low, high
