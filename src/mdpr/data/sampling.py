"""Which images a step of training sees: the order of an epoch, and how each batch is split. Nothing here has state.

An order depends on (seed, epoch) alone. A batch is split over processes (ranks) and then into micro-batches, both
into runs of neighbours, so that one process or several, with small micro-batches or none, see the same images in
every step. N images of a split, M indices of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Sampling = Literal["instance", "class_balanced"]


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once.

    indices  of the images
    offset   place of the first one in the whole step's batch
    share    of the whole step's images, 0..1: the weight of this part's means in the step's means
    """

    indices: list[int]
    offset: int
    share: float


Step = tuple[MicroBatch, ...]


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator of its own for what an epoch draws about order."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def instance_order(label_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Every image once, in random order; int64 (N,)."""
    return torch.randperm(len(label_N), generator=epoch_generator(seed, epoch)).numpy()


def class_balanced_order(label_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """N indices, int64, in which every class that has images comes equally often (give or take one).

    A class's images take turns, so none comes a second time before all of them came once. (Class-balanced sampling:
    Kang et al., Decoupling Representation and Classifier, ICLR 2020; there each draw is independent.)
    """
    generator = epoch_generator(seed, epoch)
    classes = np.unique(label_N)
    quota_C = np.full(len(classes), len(label_N) // len(classes))
    quota_C[_permutation(len(classes), generator)[: len(label_N) % len(classes)]] += 1
    drawn: list[np.ndarray] = []
    for label, quota in zip(classes, quota_C, strict=True):
        own = np.flatnonzero(label_N == label)
        turns = -(-int(quota) // len(own))
        drawn.append(np.concatenate([own[_permutation(len(own), generator)] for _ in range(turns)])[:quota])
    return np.concatenate(drawn)[_permutation(len(label_N), generator)]


ORDERS: dict[Sampling, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "instance": instance_order,
    "class_balanced": class_balanced_order,
}


def plan_epoch(
    order_M: np.ndarray, batch_size: int, micro_batch_size: int | None = None, rank: int = 0, world: int = 1
) -> list[Step]:
    """What process `rank` of `world` computes in each step of an epoch.

    A step's images are split over the processes as evenly as can be. Every process takes part in every step: one
    that is left without an image in a short last step computes the batch's last image with share 0.
    """
    batches = [order_M[start : start + batch_size].tolist() for start in range(0, len(order_M), batch_size)]
    return [_split_batch(batch, micro_batch_size or batch_size, rank, world) for batch in batches]


def _split_batch(batch: Sequence[int], micro_batch_size: int, rank: int, world: int) -> Step:
    start, stop = shard(len(batch), rank, world)
    if start == stop:
        return (MicroBatch([batch[-1]], len(batch) - 1, 0.0),)
    parts = [(first, min(first + micro_batch_size, stop)) for first in range(start, stop, micro_batch_size)]
    return tuple(MicroBatch(list(batch[a:b]), a, (b - a) / len(batch)) for a, b in parts)


def shard(count: int, rank: int, world: int) -> tuple[int, int]:
    """The run [start, stop) of `count` things that process `rank` of `world` takes; sizes differ by one at most."""
    return count * rank // world, count * (rank + 1) // world


def _permutation(count: int, generator: torch.Generator) -> np.ndarray:
    return torch.randperm(count, generator=generator).numpy()
