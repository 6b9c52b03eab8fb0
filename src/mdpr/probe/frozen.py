"""The frozen model on the training images: its bias, and simple classifiers on its features.

Its bias is the zero-shot confusion, the most-confused classes and the hidden prior: an estimate of how often
pre-training showed it each class, the prior q for which the zero-shot logits minus log q have the least class-balanced
cross entropy on labelled images. Source: Zhu et al., Generalized Logit Adjustment, NeurIPS 2023 (arXiv 2310.08106).

The classifiers are the least that a tuned model must beat on the same data:

    nearest_mean    cosine to the mean feature of each class's training images (`Probe.image_Cd`)
    logistic        multinomial logistic regression, every class with the same total weight; the strength of its penalty
                    is chosen by class-balanced accuracy on validation

Shapes: N images, C classes, d joint embedding width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.artifacts import LinearHead
from mdpr.probe.prior import fit_calibration
from mdpr.progress import track

if TYPE_CHECKING:
    from mdpr.model.backbone import Backbone

logger = logging.getLogger(__name__)

SHRINKAGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
BLOCK_ROWS = 256  # rows of a matrix of C columns that are worked on at once


def class_features(backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit-length class features (C, d): the mean over templates of each class's unit-length text features.

    A template holds `{}` in place of the name (Radford et al., ICML 2021, section 3.1.4: ensembling in feature space).
    """
    parts = [backbone.encode_text([template.replace("{}", name) for name in class_names]) for template in templates]
    return F.normalize(torch.stack(parts).mean(dim=0), dim=-1)


def confusion_matrix(label_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> np.ndarray:
    """Shares (C, C), float32: row c holds the share of class c's images predicted as each class. Rows sum to 1.

    Normalised per row because the classes are imbalanced. Every class must have images.
    """
    share_CC = np.zeros((classes, classes), dtype=np.float32)  # counts at first, exact up to 2^24
    np.add.at(share_CC, (label_N, predicted_N), 1)
    totals_C = share_CC.sum(axis=1)
    assert totals_C.all(), "every class needs at least one image"
    share_CC /= totals_C[:, None]
    return share_CC


def rivals(confusion_CC: np.ndarray, text_Cd: np.ndarray) -> np.ndarray:
    """The class (C,), int64, that each class is most confused with.

    A class that is never confused gets its nearest neighbour by class features `text_Cd` (unit length); ties in the
    confusion go to the nearer class too, so that the order of classes has no effect.
    Source: Jia et al., Findings of EMNLP 2025 (differential features).
    """
    text_Cd, class_C = text_Cd.astype(np.float64), np.arange(len(text_Cd))
    found = []
    for row_c in np.array_split(class_C, -(-len(text_Cd) // BLOCK_ROWS)):
        own_cC = row_c[:, None] == class_C
        confused_cC = np.where(own_cC, -1, confusion_CC[row_c])
        is_candidate_cC = (confused_cC == confused_cC.max(axis=1, keepdims=True)) & ~own_cC
        found.append(np.where(is_candidate_cC, text_Cd[row_c] @ text_Cd.T, -np.inf).argmax(axis=1))
    return np.concatenate(found)


class ZeroShotLogits:
    """image_Nd @ class_Cd.T, (N, C), computed whenever rows are read: N * C numbers need not fit into memory."""

    def __init__(self, image_Nd: Tensor, class_Cd: Tensor) -> None:
        self.image_Nd, self.class_Cd = image_Nd, class_Cd
        self.shape = (len(image_Nd), len(class_Cd))

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return (self.image_Nd[rows] @ self.class_Cd.T).numpy()


def estimate_log_prior(image_Nd: Tensor, class_Cd: Tensor, label_N: Tensor, shrinkage: float) -> Tensor:
    """log q, shape (C,), with sum(q) = 1: the prior whose removal calibrates the logits (`mdpr.probe.prior`).

    The zero-shot logits are image_Nd @ class_Cd.T. `shrinkage` times the variance of log q is added to the loss: it
    pulls towards the uniform prior.
    """
    logits = ZeroShotLogits(image_Nd, class_Cd)
    found = fit_calibration(logits, label_N.numpy(), len(class_Cd), shrinkage=shrinkage, fit_scale=False)
    return torch.from_numpy(found.log_prior_C)


def choose_shrinkage(image_Nd: Tensor, class_Cd: Tensor, label_N: Tensor) -> float:
    """The one of `SHRINKAGES` whose prior, estimated on every other image of each class, explains the others best.

    Both halves take their turn; the measure is class-balanced cross entropy. If every class has one image: the largest.
    """
    order_N = label_N.argsort(stable=True)
    counts_C = torch.bincount(label_N, minlength=len(class_Cd))
    place_N = torch.arange(len(label_N)) - (counts_C.cumsum(0) - counts_C)[label_N[order_N]]
    halves = [order_N[place_N % 2 == half] for half in (0, 1)]
    if counts_C.max() < 2:
        return SHRINKAGES[-1]

    def held_out_loss(shrinkage: float) -> float:
        total = 0.0
        for fit_n, held_n in (halves, halves[::-1]):
            log_prior_C = estimate_log_prior(image_Nd[fit_n], class_Cd, label_N[fit_n], shrinkage)
            total += _balanced_loss(image_Nd[held_n], class_Cd, label_N[held_n], log_prior_C)
        return total

    return min(SHRINKAGES, key=held_out_loss)


def _balanced_loss(image_Nd: Tensor, class_Cd: Tensor, label_N: Tensor, log_prior_C: Tensor) -> float:
    """Mean over the classes that have images of the cross entropy of logits - log q."""
    counts_C = torch.bincount(label_N, minlength=len(class_Cd))
    weight_N = 1 / (counts_C[label_N].double() * (counts_C > 0).sum())
    blocks = (item.split(BLOCK_ROWS) for item in (image_Nd, label_N, weight_N))
    return sum(
        float(weight_n @ F.cross_entropy((image_nd @ class_Cd.T).double() - log_prior_C, label_n, reduction="none"))
        for image_nd, label_n, weight_n in zip(*blocks, strict=True)
    )


INVERSE_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C; features have unit length
MAX_ITERATIONS = 200
IMAGES_PER_CLASS = 100  # more change little beside what a class of few images lacks
MAX_COST = 5e10  # images x classes x width: an iteration of about a minute on four cores
MAX_LOGITS = 1e8  # images x classes: scikit-learn holds several such arrays, of 8 bytes each


def fit_logistic(train_Nd: np.ndarray, label_N: np.ndarray, val_Md: np.ndarray, val_label_M: np.ndarray) -> LinearHead:
    """The regression of the penalty that is best on validation; of equal ones the strongest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score

    classes, tested = int(label_N.max()) + 1, np.unique(val_label_M)
    model = LogisticRegression(class_weight="balanced", max_iter=MAX_ITERATIONS, warm_start=True)
    found = []
    for inverse_penalty in track(INVERSE_PENALTIES, "logistic regression on frozen features"):
        model.set_params(C=inverse_penalty)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline may stop early
            model.fit(train_Nd, label_N)
        head = _as_head(model.classes_, model.coef_, model.intercept_, classes, inverse_penalty)
        answer_M = head.logits(val_Md).argmax(axis=1)
        accuracy = recall_score(val_label_M, answer_M, labels=tested, average="macro") if len(tested) else 0.0
        found.append((accuracy, head))
    return max(found, key=lambda item: item[0])[1]


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
