"""The frozen model's own bias on the training images: zero-shot confusion, most-confused classes, hidden prior.

The hidden prior is an estimate of how often pre-training showed the model each class: the prior q for which the
zero-shot logits minus log q have the least class-balanced cross entropy on labelled images.
Source: Zhu et al., Generalized Logit Adjustment, NeurIPS 2023 (arXiv 2310.08106).

Shapes: N images, C classes, d joint embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.probe.prior import fit_calibration

if TYPE_CHECKING:
    from mdpr.model.backbone import Backbone

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
    text_Cd = text_Cd.astype(np.float64)
    blocks = np.array_split(np.arange(len(text_Cd)), -(-len(text_Cd) // BLOCK_ROWS))
    return np.concatenate([_rivals_of(rows, confusion_CC[rows], text_Cd) for rows in blocks])


def _rivals_of(row_c: np.ndarray, confusion_cC: np.ndarray, text_Cd: np.ndarray) -> np.ndarray:
    """`rivals` of the classes `row_c`; `confusion_cC` are their rows."""
    own_cC = row_c[:, None] == np.arange(len(text_Cd))
    confused_cC = np.where(own_cC, -1, confusion_cC)
    is_candidate_cC = (confused_cC == confused_cC.max(axis=1, keepdims=True)) & ~own_cC
    return np.where(is_candidate_cC, text_Cd[row_c] @ text_Cd.T, -np.inf).argmax(axis=1)


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
    losses = []
    for shrinkage in SHRINKAGES:
        total = 0.0
        for fit_n, held_n in (halves, halves[::-1]):
            log_prior_C = estimate_log_prior(image_Nd[fit_n], class_Cd, label_N[fit_n], shrinkage)
            total += _balanced_loss(image_Nd[held_n], class_Cd, label_N[held_n], log_prior_C)
        losses.append(total)
    return SHRINKAGES[losses.index(min(losses))]


def _balanced_loss(image_Nd: Tensor, class_Cd: Tensor, label_N: Tensor, log_prior_C: Tensor) -> float:
    """Mean over the classes that have images of the cross entropy of logits - log q."""
    counts_C = torch.bincount(label_N, minlength=len(class_Cd))
    weight_N = 1 / (counts_C[label_N].double() * (counts_C > 0).sum())
    blocks = (item.split(BLOCK_ROWS) for item in (image_Nd, label_N, weight_N))
    return sum(
        float(weight_n @ F.cross_entropy((image_nd @ class_Cd.T).double() - log_prior_C, label_n, reduction="none"))
        for image_nd, label_n, weight_n in zip(*blocks, strict=True)
    )
