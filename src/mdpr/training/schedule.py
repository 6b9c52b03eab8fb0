"""The learning rate, a step at a time: a linear rise, then a cosine."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from mdpr.config import TuneParams


def make_schedule(optimizer: Optimizer, params: TuneParams, steps_per_epoch: int) -> LRScheduler:
    """Warm-up from 1/(w + 1) of `tune.learning_rate` over w steps, then a cosine down to `tune.min_learning_rate`."""
    total = params.epochs * steps_per_epoch
    warmup = min(round(params.warmup_epochs * steps_per_epoch), total - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=params.min_learning_rate)
    if warmup == 0:
        return cosine
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, cosine], milestones=[warmup])
