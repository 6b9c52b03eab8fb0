"""The hidden prior: how often the frozen model's pre-training seems to have shown it each class.

Source: Zhu et al., Generalized Logit Adjustment, NeurIPS 2023 (arXiv 2310.08106). The prior q is the one for which the
zero-shot logits minus log q have the least class-balanced cross entropy on labelled images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
