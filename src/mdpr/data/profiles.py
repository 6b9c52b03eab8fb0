"""How many images each class keeps: the shapes of a long tail, and the groups of shots. Pure functions.

C classes; n_max images of the largest; IR the imbalance ratio, largest over smallest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from mdpr.artifacts import ShotGroup
from mdpr.config import PrepareParams


def exponential_profile(max_images: int, imbalance_ratio: float, classes: int) -> list[int]:
    """n_c = int(n_max (1/IR)^(c/(C-1))) for c = 0..C-1, the profile of CIFAR-LT (Cui et al., CVPR 2019)."""
    return [_whole(max_images * (1 / imbalance_ratio) ** (c / (classes - 1))) for c in range(classes)]


def step_profile(max_images: int, imbalance_ratio: float, classes: int) -> list[int]:
    """n_max for the first half of the classes, int(n_max / IR) for the others (Buda et al., Neural Networks 2018)."""
    head = classes // 2
    return [max_images] * head + [_whole(max_images / imbalance_ratio)] * (classes - head)


def pareto_profile(max_images: int, imbalance_ratio: float, classes: int, power: float) -> list[int]:
    """n_c = int(n_max (1 + k c/(C-1))^-a), with k such that the last class has n_max / IR.

    The tail of a Pareto distribution of power a; ImageNet-LT was drawn from one with a = 6 (Liu et al., CVPR
    2019). As a grows it becomes the exponential profile.
    """
    k = imbalance_ratio ** (1 / power) - 1
    return [_whole(max_images * (1 + k * c / (classes - 1)) ** -power) for c in range(classes)]


def _whole(exact: float) -> int:
    return math.floor(exact * (1 + 1e-12))  # 49 * (1/49) is 1, not 0.9999...


class Tail(Protocol):
    """The settings that say how long a tail is: those of params.yaml, or those that card.json kept."""

    @property
    def max_images_per_class(self) -> int: ...

    @property
    def pareto_power(self) -> float: ...


PROFILES: dict[str, Callable[[Tail, float, int], list[int]]] = {
    "exponential": lambda tail, ratio, classes: exponential_profile(tail.max_images_per_class, ratio, classes),
    "step": lambda tail, ratio, classes: step_profile(tail.max_images_per_class, ratio, classes),
    "pareto": lambda tail, ratio, classes: pareto_profile(tail.max_images_per_class, ratio, classes, tail.pareto_power),
}


def class_order(params: PrepareParams, counts_C: np.ndarray) -> np.ndarray:
    """The classes from the largest to the smallest that the cut makes of them (int64, a permutation)."""
    orders: dict[str, Callable[[], np.ndarray]] = {
        "given": lambda: np.arange(len(counts_C)),
        # A generator of its own: the images drawn are those of the order given.
        "shuffled": lambda: np.random.default_rng(params.seed).permutation(len(counts_C)),
        "by_count": lambda: np.argsort(-counts_C, kind="stable"),
    }
    return orders[params.class_order]()


def planned_counts(params: PrepareParams, counts_C: np.ndarray, imbalance_ratio: float) -> list[int]:
    """Images of each class, in order of index, that the cut of this ratio makes of `counts_C`; not for natural."""
    planned_C = np.empty(len(counts_C), np.int64)
    planned_C[class_order(params, counts_C)] = PROFILES[params.profile](params, imbalance_ratio, len(counts_C))
    return [int(count) for count in planned_C]


def shot_group(train_images: int, many_above: int, few_below: int) -> ShotGroup:
    """many: more than `many_above` training images; few: fewer than `few_below`; medium: between."""
    if train_images > many_above:
        return "many"
    return "few" if train_images < few_below else "medium"
