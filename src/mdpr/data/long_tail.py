"""Which images of the pool become training, validation and test: pure functions of labels and a seed.

C classes, N images of the pool. Rows whose label is `LEFT_OUT` are never taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdpr.artifacts import Validation
from mdpr.config import PrepareParams
from mdpr.data.profiles import planned_counts
from mdpr.errors import DataError

VAL_SHARE = 0.2
"""Largest share of a class's training images that becomes validation where nothing is left over."""


@dataclass(frozen=True)
class Cut:
    """Rows of the pool (int64, increasing) that go where; `val` is empty where the source has its own."""

    train: np.ndarray
    val: np.ndarray
    validation: Validation


def hold_out_test(labels_N: np.ndarray, names: Sequence[str], share: float) -> np.ndarray:
    """Rows (increasing) of a stratified test set: int(share * n_c) images of each class, at least 1.

    The draw hangs on no setting but `share`: every seed and every cut is judged by the same images.
    Raises `DataError` that names a class with fewer than 2 images.
    """
    random = np.random.default_rng(0)
    test = []
    for index, name in enumerate(names):
        rows = np.flatnonzero(labels_N == index)
        if len(rows) < 2:
            raise DataError(
                f"class {index} ({name}) has {len(rows)} image, 2 are needed for a test set: add images, or give the "
                "source a test split"
            )
        test.append(random.permutation(rows)[: max(1, int(share * len(rows)))])
    return np.sort(np.concatenate(test))


def cut_pool(labels_N: np.ndarray, names: Sequence[str], params: PrepareParams, *, with_val: bool) -> Cut:
    """Train and validation rows of the pool, drawn as the usual CIFAR-LT generator draws them.

    One legacy NumPy generator, classes in order, each class's rows shuffled; the first n_c are training, the
    next ones validation. Profile natural takes all. Validation as a share of training gives up at most 20 % of
    each class (at least 1 image, never the last).
    Raises `DataError` that names the class, what it has and what it would need.
    """
    counts_C = np.bincount(labels_N[labels_N >= 0], minlength=len(names))
    for index, count in enumerate(counts_C):
        if count == 0:
            raise DataError(f"train: class {index} ({names[index]}) has no image: add images or drop the class")
    plan_train_C, plan_val_C = _plan(counts_C, names, params, with_val)
    random = np.random.RandomState(params.seed)  # the published cuts are defined by this generator
    train, val = [], []
    for index, (n_train, n_val) in enumerate(zip(plan_train_C, plan_val_C, strict=True)):
        rows = np.flatnonzero(labels_N == index)
        random.shuffle(rows)
        train.append(rows[:n_train])
        val.append(rows[n_train : n_train + n_val])
    left_over = params.profile != "natural" and params.val_from == "left_over"
    taken_from: Validation = "left_over" if left_over else "train_share"
    return Cut(np.sort(np.concatenate(train)), np.sort(np.concatenate(val)), taken_from if with_val else "source")


def _plan(
    counts_C: np.ndarray, names: Sequence[str], params: PrepareParams, with_val: bool
) -> tuple[list[int], list[int]]:
    """Images of each class for training and for validation."""
    natural = params.profile == "natural"
    kept_C = counts_C.tolist() if natural else planned_counts(params, counts_C, params.imbalance_ratio)
    left_over = with_val and not natural and params.val_from == "left_over"
    n_val = params.val_images_per_class if left_over else 0
    for index, (count, n_kept) in enumerate(zip(counts_C, kept_C, strict=True)):
        label = f"class {index} ({names[index]})"
        if n_kept == 0:
            raise DataError(
                f"train: {label} would get no image: prepare.max_images_per_class must be at least "
                f"prepare.imbalance_ratio ({params.max_images_per_class} < {params.imbalance_ratio:g})"
            )
        if count < n_kept + n_val:
            raise DataError(
                f"train: {label} has {count} images, but {n_kept} for training and {n_val} for validation "
                "are asked: lower prepare.max_images_per_class or prepare.val_images_per_class, or set "
                "prepare.val_from to train_share or prepare.profile to natural"
            )
    if left_over or not with_val:
        return kept_C, [n_val] * len(names)
    val_C = [_val_share(n, name, params) for n, name in zip(kept_C, names, strict=True)]
    return [n - v for n, v in zip(kept_C, val_C, strict=True)], val_C


def _val_share(count: int, name: str, params: PrepareParams) -> int:
    if count < 2:
        raise DataError(
            f"train: class {name} has {count} image, one more is needed for validation: add images, or give "
            "the source a val split"
        )
    return max(1, min(params.val_images_per_class, int(VAL_SHARE * count)))
