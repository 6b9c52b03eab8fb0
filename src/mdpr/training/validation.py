"""Class-balanced accuracy of every branch on the validation set: what chooses the epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from mdpr.artifacts import ShotGroup
from mdpr.evaluation.metrics import class_recall, group_means
from mdpr.model.classifier import MDPR


@torch.no_grad()
def validate(model: MDPR, loader: DataLoader, shots: Sequence[ShotGroup]) -> dict[str, dict[str, float]]:
    """branch -> group -> accuracy (0..1) for base, fused and, where there is a router, routed.

    Class features and the router's table are computed once. Leaves the model in evaluation mode.
    """
    model.eval()
    constants = model.constants()
    labels: list[np.ndarray] = []
    predicted: dict[str, list[np.ndarray]] = {}
    for image_B3HW, label_B in loader:
        outputs = model(image_B3HW.to(model.backbone.device), constants=constants)
        branches = {"base": outputs.base_BC, "routed": outputs.routed_BC, "fused": outputs.fused_BC}
        labels.append(label_B.numpy())
        for branch, logits_BC in branches.items():
            if logits_BC is not None:
                predicted.setdefault(branch, []).append(logits_BC.argmax(dim=-1).cpu().numpy())
    label_N = np.concatenate(labels)
    return {
        branch: group_means(class_recall(label_N, np.concatenate(parts), len(shots)), shots)
        for branch, parts in predicted.items()
    }
