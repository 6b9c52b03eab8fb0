"""Simple classifiers on the frozen image features: the least that a tuned model must beat on the same data.

    nearest_mean    cosine to the mean feature of each class's training images (`Probe.image_Cd`)
    logistic        multinomial logistic regression, every class with the same total weight; the strength of its penalty
                    is chosen by class-balanced accuracy on validation

Shapes: N images, C classes, d joint embedding width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mdpr.artifacts import LinearHead, Probe, read_logistic
from mdpr.progress import track

logger = logging.getLogger(__name__)

INVERSE_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C; features have unit length
MAX_ITERATIONS = 200
IMAGES_PER_CLASS = 100  # more change little beside what a class of few images lacks
MAX_COST = 5e10  # images x classes x width: an iteration of about a minute on four cores
MAX_LOGITS = 1e8  # images x classes: scikit-learn holds several such arrays, of 8 bytes each


def fit_logistic(train_Nd: np.ndarray, label_N: np.ndarray, val_Md: np.ndarray, val_label_M: np.ndarray) -> LinearHead:
    """The regression of the penalty that is best on validation; of equal ones the strongest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = int(label_N.max()) + 1
    model = LogisticRegression(class_weight="balanced", max_iter=MAX_ITERATIONS, warm_start=True)
    best, best_accuracy = None, -1.0
    for inverse_penalty in track(INVERSE_PENALTIES, "logistic regression on frozen features"):
        model.set_params(C=inverse_penalty)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline may stop early
            model.fit(train_Nd, label_N)
        head = _as_head(model.classes_, model.coef_, model.intercept_, classes, inverse_penalty)
        accuracy = _balanced_accuracy(head.logits(val_Md).argmax(axis=1), val_label_M) if len(val_label_M) else 0.0
        if accuracy > best_accuracy:
            best, best_accuracy = head, accuracy
    assert best is not None
    return best


def few_per_class(label_N: np.ndarray, most: int = IMAGES_PER_CLASS) -> np.ndarray:
    """Rows of the first `most` images of each class, in order."""
    order_N = np.argsort(label_N, kind="stable")
    first_N = np.searchsorted(label_N[order_N], label_N[order_N])
    return np.sort(order_N[np.arange(len(order_N)) - first_N < most])


def is_affordable(images: int, classes: int, width: int) -> bool:
    """Whether scikit-learn fits the regression in minutes and in 2 GB; a line says so if it does not."""
    if images * classes * width <= MAX_COST and images * classes <= MAX_LOGITS:
        return True
    logger.info("no logistic regression: %d images of %d classes are too many for scikit-learn", images, classes)
    return False


def read_baselines(probe: Path, content: Probe) -> Mapping[str, LinearHead]:
    """The baselines of a probe by name; without the regression if it was left out."""
    known_C1 = np.abs(content.image_Cd).sum(axis=1, keepdims=True) > 0
    never_C = np.where(known_C1[:, 0], 0.0, -2.0).astype(np.float32)  # below every cosine
    logistic = read_logistic(probe, len(content.image_Cd))
    return {"nearest_mean": LinearHead(content.image_Cd, never_C)} | ({"logistic": logistic} if logistic else {})


def _as_head(
    found_K: np.ndarray, coefficient_Kd: np.ndarray, intercept_K: np.ndarray, classes: int, inverse_penalty: float
) -> LinearHead:
    """One row per class: scikit-learn has one row for two classes, and none for a class without images."""
    if len(found_K) == 2:
        coefficient_Kd, intercept_K = (np.concatenate([-part / 2, part / 2]) for part in (coefficient_Kd, intercept_K))
    weight_Cd = np.zeros((classes, coefficient_Kd.shape[1]), np.float32)
    bias_C = np.full(classes, np.finfo(np.float32).min / 2, np.float32)
    weight_Cd[found_K], bias_C[found_K] = coefficient_Kd, intercept_K
    return LinearHead(weight_Cd, bias_C, inverse_penalty)


def _balanced_accuracy(answer_M: np.ndarray, label_M: np.ndarray) -> float:
    right_C = np.bincount(label_M[answer_M == label_M], minlength=int(label_M.max()) + 1)
    image_C = np.bincount(label_M)
    return float((right_C[image_C > 0] / image_C[image_C > 0]).mean())
