"""How many images each class keeps, and which ones: pure functions of counts, labels and a seed.

C classes, N images of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdpr.artifacts import ShotGroup, Validation
from mdpr.config import PrepareParams
from mdpr.errors import DataError

VAL_SHARE = 0.2
"""Largest share of a class's training images that becomes validation where nothing is left over (natural)."""


@dataclass(frozen=True)
class Cut:
    """Rows of the pool (int64, increasing) that go where; `val` is empty where the source has its own."""

    train: np.ndarray
    val: np.ndarray
    validation: Validation


def exponential_profile(max_images: int, imbalance_ratio: float, classes: int) -> list[int]:
    """n_c = int(n_max (1/IR)^(c/(C-1))) for c = 0..C-1, the profile of CIFAR-LT (Cui et al., CVPR 2019)."""
    exact = (max_images * (1 / imbalance_ratio) ** (c / (classes - 1)) for c in range(classes))
    return [math.floor(images * (1 + 1e-12)) for images in exact]  # 49 * (1/49) is 1, not 0.9999...


def shot_group(train_images: int, many_above: int, few_below: int) -> ShotGroup:
    """many: more than `many_above` training images; few: fewer than `few_below`; medium: between."""
    if train_images > many_above:
        return "many"
    return "few" if train_images < few_below else "medium"


def cut_pool(labels_N: np.ndarray, names: Sequence[str], params: PrepareParams, *, with_val: bool) -> Cut:
    """Train and validation rows of the pool, drawn as the usual CIFAR-LT generator draws them.

    One legacy NumPy generator, classes in order, each class's rows shuffled; the first n_c are training, the
    next ones validation. Profile natural takes all; without a validation split it gives up at most 20 % of
    each class (at least 1 image, never the last).
    Raises `DataError` that names the class, what it has and what it would need.
    """
    counts_C = np.bincount(labels_N, minlength=len(names))
    for index, count in enumerate(counts_C):
        if count == 0:
            raise DataError(f"train: class {index} ({names[index]}) has no image: add images or drop the class")
    plan_train_C, plan_val_C = _plan(counts_C.tolist(), names, params, with_val)
    random = np.random.RandomState(params.seed)  # the published cuts are defined by this generator
    train, val = [], []
    for index, (n_train, n_val) in enumerate(zip(plan_train_C, plan_val_C, strict=True)):
        rows = np.flatnonzero(labels_N == index)
        random.shuffle(rows)
        train.append(rows[:n_train])
        val.append(rows[n_train : n_train + n_val])
    taken_from: Validation = "left_over" if params.profile == "exponential" else "train_share"
    return Cut(np.sort(np.concatenate(train)), np.sort(np.concatenate(val)), taken_from if with_val else "source")


def _plan(
    counts_C: list[int], names: Sequence[str], params: PrepareParams, with_val: bool
) -> tuple[list[int], list[int]]:
    """Images of each class for training and for validation."""
    if params.profile == "natural":
        if not with_val:
            return counts_C, [0] * len(counts_C)
        val_C = [_val_share(n, name, params) for n, name in zip(counts_C, names, strict=True)]
        return [n - v for n, v in zip(counts_C, val_C, strict=True)], val_C
    train_C = exponential_profile(params.max_images_per_class, params.imbalance_ratio, len(names))
    n_val = params.val_images_per_class if with_val else 0
    for index, (count, n_train) in enumerate(zip(counts_C, train_C, strict=True)):
        label = f"class {index} ({names[index]})"
        if n_train == 0:
            raise DataError(
                f"train: {label} would get no image: prepare.max_images_per_class must be at least "
                f"prepare.imbalance_ratio ({params.max_images_per_class} < {params.imbalance_ratio:g})"
            )
        if count < n_train + n_val:
            raise DataError(
                f"train: {label} has {count} images, but {n_train} for training and {n_val} for validation "
                "are asked: lower prepare.max_images_per_class or prepare.val_images_per_class, or set "
                "prepare.profile to natural"
            )
    return train_C, [n_val] * len(names)


def _val_share(count: int, name: str, params: PrepareParams) -> int:
    if count < 2:
        raise DataError(
            f"train: class {name} has {count} image, one more is needed for validation: add images, or give "
            "the source a val split"
        )
    return max(1, min(params.val_images_per_class, int(VAL_SHARE * count)))
