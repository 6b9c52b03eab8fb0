"""The shapes of a long tail, and the cut by the order of images, as published sets define theirs.

N images of the pool, C classes; n_max images of the largest class; IR the imbalance ratio, largest over smallest.
A row whose label is negative is never taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mdpr.artifacts import DataCard, ShotGroup, Validation
from mdpr.errors import DataError
from mdpr.params import PrepareParams

SMALL_CLASS_FIX = "add images, or set prepare.small_classes to drop or train_only"
VAL_SHARE = 0.2
"""Largest share of a class's training images that becomes validation if nothing is left over."""


@dataclass(frozen=True)
class Cut:
    """Rows of the pool (int64, increasing) of each split; `val` is empty if the source has its own."""

    train: np.ndarray
    val: np.ndarray
    validation: Validation


def hold_out_test(
    labels_N: np.ndarray, names: Sequence[str], share: float, train_only: Collection[int] = ()
) -> np.ndarray:
    """Rows (increasing) of a stratified test set: int(share * n_c) images of each class, at least 1.

    None of the classes `train_only`. The draw depends on no setting but `share`: every seed and every cut is judged by
    the same images. Raises `DataError` that names a class with fewer than 2 images.
    """
    random = np.random.default_rng(0)
    test = []
    for index, name in enumerate(names):
        if index in train_only:
            continue
        rows = np.flatnonzero(labels_N == index)
        if len(rows) < 2:
            raise DataError(
                f"class {index} ({name}) has {len(rows)} image, 2 are needed for a test set: add images, give the "
                "source a test split, or set prepare.small_classes"
            )
        test.append(random.permutation(rows)[: max(1, int(share * len(rows)))])
    return np.sort(np.concatenate(test))


def cut_pool(
    labels_N: np.ndarray,
    names: Sequence[str],
    params: PrepareParams,
    *,
    with_val: bool,
    train_only: Collection[int] = (),
) -> Cut:
    """Train and validation rows of the pool, drawn as the usual CIFAR-LT generator draws them.

    One legacy NumPy generator, classes in order, each class's rows shuffled; the first n_c are training, the
    next ones validation. Profile natural takes all. Validation as a share of training gives up at most 20 % of
    each class (at least 1 image, never the last), and nothing of the classes `train_only`.
    Raises `DataError` that names the class, what it has and what it would need.
    """
    counts_C = np.bincount(labels_N[labels_N >= 0], minlength=len(names))
    left_over = takes_left_over(params, with_val=with_val)
    plan_train_C, plan_val_C = planned_rows(counts_C, names, params, left_over=left_over, train_only=train_only)
    if with_val and not left_over:
        plan_val_C = [
            0 if index in train_only else _val_share(count, name, params)
            for index, (count, name) in enumerate(zip(plan_train_C, names, strict=True))
        ]
        plan_train_C = [n - v for n, v in zip(plan_train_C, plan_val_C, strict=True)]
    random = np.random.RandomState(params.seed)  # the published cuts are defined by this generator
    train, val = [], []
    for index, (n_train, n_val) in enumerate(zip(plan_train_C, plan_val_C, strict=True)):
        rows = np.flatnonzero(labels_N == index)
        random.shuffle(rows)
        train.append(rows[:n_train])
        val.append(rows[n_train : n_train + n_val])
    taken_from: Validation = "left_over" if left_over else "train_share"
    return Cut(np.sort(np.concatenate(train)), np.sort(np.concatenate(val)), taken_from if with_val else "source")


def takes_left_over(params: PrepareParams, *, with_val: bool) -> bool:
    """Whether validation is made of what the cut leaves in the pool."""
    return with_val and params.profile != "natural" and params.val_from == "left_over"


def planned_rows(
    counts_C: np.ndarray, names: Sequence[str], params: PrepareParams, *, left_over: bool, train_only: Collection[int]
) -> tuple[list[int], list[int]]:
    """Images of each class that the cut keeps, and those that are taken from what it leaves.

    Raises `DataError` for a class that has no image, has fewer than that, or would keep none.
    """
    for index, count in enumerate(counts_C):
        if count == 0:
            raise DataError(f"train: class {index} ({names[index]}) has no image: {SMALL_CLASS_FIX}")
    kept_C = counts_C.tolist()
    if params.profile != "natural":
        kept_C = planned_counts(params, counts_C, params.imbalance_ratio)
    val_C = [0 if index in train_only or not left_over else params.val_images_per_class for index in range(len(names))]
    for index, (count, n_kept, n_val) in enumerate(zip(counts_C, kept_C, val_C, strict=True)):
        label = f"class {index} ({names[index]})"
        if n_kept == 0:
            raise DataError(
                f"train: {label} would get no image: prepare.max_images_per_class must be at least "
                f"prepare.imbalance_ratio ({params.max_images_per_class} < {params.imbalance_ratio:g})"
            )
        if count < n_kept + n_val:
            raise DataError(
                f"train: {label} has {count} images, but {n_kept} for training and {n_val} for validation "
                "are needed: lower prepare.max_images_per_class or prepare.val_images_per_class, or set "
                "prepare.val_from to train_share or prepare.profile to natural"
            )
    return kept_C, val_C


def _val_share(count: int, name: str, params: PrepareParams) -> int:
    if count < 2:
        raise DataError(
            f"train: class {name} has {count} image, one more is needed for validation: add images, give the source a "
            "val split, or set prepare.small_classes"
        )
    return max(1, min(params.val_images_per_class, int(VAL_SHARE * count)))


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


Tail = PrepareParams | DataCard  # the settings that say how long a tail is, as they are or as card.json kept them

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
    return planned_C.tolist()


def shot_group(train_images: int, many_above: int, few_below: int) -> ShotGroup:
    """many: more than `many_above` training images; few: fewer than `few_below`; medium: between."""
    if train_images > many_above:
        return "many"
    return "few" if train_images < few_below else "medium"
