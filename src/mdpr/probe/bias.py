"""The frozen model's own bias on the training images: zero-shot confusion, most-confused classes, hidden prior.

The hidden prior is an estimate of how often pre-training showed the model each class: the prior q for which the
zero-shot logits minus log q have the least class-balanced cross entropy on labelled images.
Source: Zhu et al., Generalized Logit Adjustment, NeurIPS 2023 (arXiv 2310.08106).

Shapes: N images, C classes, d joint embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.model.backbone import Backbone


def class_features(backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit-length class features (C, d): the mean over templates of each class's unit-length text features.

    A template holds `{}` in place of the name (Radford et al., ICML 2021, section 3.1.4: ensembling in feature space).
    """
    parts = [backbone.encode_text([template.replace("{}", name) for name in class_names]) for template in templates]
    return F.normalize(torch.stack(parts).mean(dim=0), dim=-1)


def confusion_matrix(label_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> np.ndarray:
    """Shares (C, C), float64: row c holds the share of class c's images predicted as each class. Rows sum to 1.

    Normalised per row because the classes are imbalanced. Every class must have images.
    """
    counts_CC = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts_CC, (label_N, predicted_N), 1)
    totals_C = counts_CC.sum(axis=1)
    assert totals_C.all(), "every class needs at least one image"
    return counts_CC / totals_C[:, None]


def rivals(confusion_CC: np.ndarray, text_Cd: np.ndarray) -> np.ndarray:
    """The class (C,), int64, that each class is most confused with.

    A class that is never confused gets its nearest neighbour by class features `text_Cd` (unit length); ties in the
    confusion go to the nearer class too, so that the order of classes has no effect.
    Source: Jia et al., Findings of EMNLP 2025 (differential features).
    """
    off_diagonal_CC = confusion_CC.astype(np.float64).copy()
    np.fill_diagonal(off_diagonal_CC, -1)
    nearness_CC = text_Cd.astype(np.float64) @ text_Cd.T.astype(np.float64)
    tied_CC = off_diagonal_CC == off_diagonal_CC.max(axis=1, keepdims=True)
    candidates_CC = np.where(tied_CC, nearness_CC, -np.inf)
    np.fill_diagonal(candidates_CC, -np.inf)
    return candidates_CC.argmax(axis=1)


MAX_ITERATIONS = 200


def estimate_log_prior(logits_NC: Tensor, label_N: Tensor, shrinkage: float) -> Tensor:
    """log q, shape (C,), with sum(q) = 1.

    Minimises, over theta = log q up to a constant, the mean over classes of the cross entropy of logits - theta, plus
    `shrinkage` times the variance of theta. The problem is convex; the shrinkage pulls towards the uniform prior and
    keeps classes of one image from running away. Computed in float64 by L-BFGS.
    """
    logits_NC = logits_NC.double()
    classes = logits_NC.shape[1]
    counts_C = torch.bincount(label_N, minlength=classes)
    weight_N = 1 / (counts_C[label_N].double() * (counts_C > 0).sum())
    theta_C = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta_C],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        cross_entropy_N = F.cross_entropy(logits_NC - theta_C, label_N, reduction="none")
        loss = (weight_N * cross_entropy_N).sum() + shrinkage * theta_C.var(unbiased=False)
        loss.backward()
        return loss

    optimizer.step(objective)
    return F.log_softmax(theta_C.detach(), dim=0)
