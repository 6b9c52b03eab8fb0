"""How often each class occurs, from a model's answers with labels (a bias of the model) or without (shares of images).

With labels: the calibration `scale * z + bias` of log-probabilities z that has the least class-balanced cross entropy.
Without a scale, -bias is the log prior that the model has taken in (Zhu et al., Generalized Logit Adjustment, NeurIPS
2023, arXiv 2310.08106); with one, this is bias-corrected temperature scaling (Alexandari et al., ICML 2020). Calibrated
scores are log p(x | c) up to a constant of the image: the answers of a model to which all classes are alike.

Without labels: from such scores, expectation maximisation finds the class shares under which the images are most
likely (Saerens, Latinne and Decaestecker, Neural Computation 14, 2002).

Shapes: N images, C classes, K classes that are recorded of an image (all of them if `class_NK` is None).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array

MAX_ITERATIONS = 200
BLOCK_CELLS = 2**18  # scores that are worked on at once
SCALE_BOUNDS = (0.02, 50.0)
PSEUDO_IMAGES = 0.5  # per class, spread like the start: no class gets a share of 0
EM_TOLERANCE = 1e-6  # of a share
EM_MAX_ITERATIONS = 2000


class Logits(Protocol):
    """An (N, K) array, as far as it is used: read a block of rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Calibration:
    """`scale * z + bias` of a model's log-probabilities."""

    scale: float
    bias_C: np.ndarray

    def scores(self, log_probability_NK: np.ndarray, class_NK: np.ndarray) -> np.ndarray:
        """log p(x | c) up to a constant per image, (N, K) float64."""
        return self.scale * log_probability_NK.astype(np.float64) + self.bias_C[class_NK]

    @property
    def log_prior_C(self) -> np.ndarray:
        """The log prior that the model has taken in."""
        return log_normalised(-self.bias_C)


def log_normalised(score_C: np.ndarray) -> np.ndarray:
    """`score_C` minus a constant, so that its exponentials sum to 1."""
    shifted_C = score_C - score_C.max()
    return np.asarray(shifted_C - np.log(np.exp(shifted_C).sum()))


def fit_calibration(
    logits_NK: Logits,
    label_N: np.ndarray,
    classes: int,
    *,
    class_NK: np.ndarray | None = None,
    weight_N: np.ndarray | None = None,
    shrinkage: float,
    fit_scale: bool,
    start: Calibration | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> Calibration:
    """The calibration with the least class-balanced cross entropy plus `shrinkage` times the variance of the bias.

    The problem is convex. The shrinkage pulls towards no bias and keeps the bias of classes of one image bounded. An
    image whose label is not among its K classes does not count. `weight_N` weighs images within and between classes;
    the classes are balanced after it. L-BFGS in float64, over blocks of images.
    """
    position_N = _positions(label_N, class_NK)
    known = position_N >= 0
    if not known.all():
        logits_NK, label_N, position_N = logits_NK[known], label_N[known], position_N[known]
        class_NK = None if class_NK is None else class_NK[known]
        weight_N = None if weight_N is None else weight_N[known]
    weights = np.ones(len(label_N)) if weight_N is None else weight_N.astype(np.float64)
    total_C = np.bincount(label_N, weights, minlength=classes)
    weights = weights / (total_C[label_N] * np.count_nonzero(total_C))
    rows = max(1, BLOCK_CELLS // max(1, logits_NK.shape[1]))

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias_C = theta[0], theta[1:]
        centred_C = bias_C - bias_C.mean()
        loss = shrinkage * float((centred_C**2).mean())
        slope, slope_C = 0.0, 2 * shrinkage * centred_C / classes
        for first in range(0, len(label_N), rows):
            part = slice(first, first + rows)
            logits_nk, weight_n = logits_NK[part].astype(np.float64), weights[part]
            true_n = position_N[part, None]
            score_nk = scale * logits_nk + (bias_C if class_NK is None else bias_C[class_NK[part]])
            score_nk -= score_nk.max(axis=1, keepdims=True)
            loss -= float(weight_n @ np.take_along_axis(score_nk, true_n, 1)[:, 0])
            np.exp(score_nk, out=score_nk)
            sum_n = score_nk.sum(axis=1)
            loss += float(weight_n @ np.log(sum_n))
            score_nk *= (weight_n / sum_n)[:, None]  # now the weighted probabilities
            if class_NK is None:
                slope_C += score_nk.sum(axis=0)
            else:
                slope_C += np.bincount(class_NK[part].ravel(), score_nk.ravel(), minlength=classes)
            if fit_scale:
                slope += float((score_nk * logits_nk).sum())
                slope -= float(weight_n @ np.take_along_axis(logits_nk, true_n, 1)[:, 0])
        slope_C -= np.bincount(label_N, weights, minlength=classes)
        return loss, np.concatenate([[slope if fit_scale else 0.0], slope_C])

    begin = start or Calibration(1.0, np.zeros(classes))
    found = minimize(
        objective,
        np.concatenate([[begin.scale], begin.bias_C]),
        jac=True,
        method="L-BFGS-B",
        bounds=[SCALE_BOUNDS] + [(None, None)] * classes,
        options={"maxiter": max_iterations, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 20},
    )
    return Calibration(float(found.x[0]), found.x[1:])


def _positions(label_N: np.ndarray, class_NK: np.ndarray | None) -> np.ndarray:
    """Where each image's label stands among its classes, -1 if it is none of them."""
    if class_NK is None:
        return label_N
    is_label_NK = class_NK == label_N[:, None]
    return np.where(is_label_NK.any(axis=1), is_label_NK.argmax(axis=1), -1)


def estimate_shares(
    score_NK: np.ndarray,
    class_NK: np.ndarray,
    start_C: np.ndarray,
) -> np.ndarray:
    """Class shares (C,) that make the images most likely, by expectation maximisation from `start_C`.

    `score_NK`: calibrated scores (`Calibration.scores`); a class that is not recorded of an image counts as impossible
    there. `PSEUDO_IMAGES` per class, spread like `start_C`, keep every share above 0; without images the result is
    `start_C`.
    """
    images, recorded = score_NK.shape
    likelihood_NK = np.exp(score_NK - score_NK.max(axis=1, keepdims=True, initial=-np.inf))
    ends = np.arange(0, images * recorded + 1, max(1, recorded))[: images + 1]
    likelihood = csr_array((likelihood_NK.ravel(), class_NK.ravel(), ends), shape=(images, len(start_C)))
    transposed = likelihood.T
    pseudo_C = PSEUDO_IMAGES * len(start_C) * start_C
    total, share_C = images + pseudo_C.sum(), start_C
    for _ in range(EM_MAX_ITERATIONS):
        evidence_N = np.maximum(likelihood @ share_C, np.finfo(float).tiny)
        updated_C = (share_C * (transposed @ (1 / evidence_N)) + pseudo_C) / total
        updated_C /= updated_C.sum()
        moved, share_C = np.abs(updated_C - share_C).max(), updated_C
        if moved < EM_TOLERANCE:
            break
    return np.asarray(share_C)
