"""One seed for everything that is drawn at random."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (legacy generator) and torch. Initial weights are drawn after this."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that draw from the legacy generator
    torch.manual_seed(seed)


def seed_step(seed: int, epoch: int, step: int, offset: int = 0) -> None:
    """Seed torch for one step, so that dropout depends on where training is and not on how it got there.

    `offset` is the place of the first image in the step's batch: each micro-batch and each process has dropout of its
    own, which is why splitting a batch changes what is dropped (and nothing else).
    """
    key = (offset,) if offset else ()
    state = np.random.SeedSequence((seed, epoch, step), spawn_key=key).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
