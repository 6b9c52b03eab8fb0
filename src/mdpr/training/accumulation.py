"""The gradients of one step, a micro-batch at a time. B images in a micro-batch, K terms of the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mdpr.data.sampling import MicroBatch
from mdpr.training.objective import Objective
from mdpr.training.precision import Precision
from mdpr.training.reproducibility import seed_step

LoadedBatch = tuple[MicroBatch, tuple[Tensor, Tensor]]  # images float32 (B, 3, H, W), labels int64 (B,)


def accumulate_gradients(
    objective: Objective, batches: Iterable[LoadedBatch], precision: Precision, *, seed: int, epoch: int, step: int
) -> dict[str, Tensor]:
    """Add the gradients of a step's loss to the learned parameters; return the weighted terms, detached, by name.

    Every term is a mean over images, so terms and gradients of the whole batch are those of its micro-batches, each
    weighted with its share of the images. With fp16 the gradients are still scaled.
    """
    device = objective.model.backbone.device
    totals: dict[str, Tensor] = {}
    for part, (image_B3HW, label_B) in batches:
        seed_step(seed, epoch, step, part.offset)
        label_B = label_B.to(device, non_blocking=True)
        with precision.autocast():
            outputs = objective.model(image_B3HW.to(device, non_blocking=True), label_B)
        terms = objective.terms(outputs, label_B, epoch)
        loss = torch.stack(list(terms.values())).sum()
        precision.scaler.scale(part.share * loss).backward()
        for name, term in terms.items():
            weighted = part.share * term.detach()
            totals[name] = totals[name] + weighted if name in totals else weighted
    return totals
