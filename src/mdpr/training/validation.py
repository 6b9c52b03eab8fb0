"""Class-balanced accuracy of every branch on the validation set: what chooses the epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mdpr.artifacts import ShotGroup
from mdpr.evaluation.metrics import group_means
from mdpr.model.classifier import MDPR
from mdpr.training.distributed import ALONE, Ranks


@torch.no_grad()
def validate(
    model: MDPR, loader: DataLoader, shots: Sequence[ShotGroup], ranks: Ranks = ALONE
) -> dict[str, dict[str, float]]:
    """branch -> group -> accuracy (0..1) for base, fused and, where there is a router, routed.

    Class features and the router's table are computed once. Each process counts on the images of its own loader; all
    get the result of all. Leaves the model in evaluation mode.
    """
    model.eval()
    constants = model.constants()
    classes = len(shots)
    branches = ("base", "fused") if model.router is None else ("base", "routed", "fused")
    images_C = torch.zeros(classes, dtype=torch.int64)
    hits_KC = torch.zeros(len(branches), classes, dtype=torch.int64)
    for image_B3HW, label_B in loader:
        outputs = model(image_B3HW.to(model.backbone.device), constants=constants)
        images_C += torch.bincount(label_B, minlength=classes)
        for hits_C, branch in zip(hits_KC, branches, strict=True):
            logits_BC: Tensor = getattr(outputs, f"{branch}_BC")
            hits_C += torch.bincount(label_B[logits_BC.argmax(dim=-1).cpu() == label_B], minlength=classes)
    images_C, *hits = ranks.sum(torch.cat([images_C[None], hits_KC])).numpy()
    recalls = (np.divide(hits_C, images_C, out=np.full(classes, np.nan), where=images_C > 0) for hits_C in hits)
    return {branch: group_means(recall_C, shots) for branch, recall_C in zip(branches, recalls, strict=True)}
