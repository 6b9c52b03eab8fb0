"""Two models' answers to the same test images, compared by a paired bootstrap (see `mdpr.bootstrap`).

An image has one of four outcomes: both right, the challenger alone, the opponent alone, none. Their counts by class
hold all that class-balanced accuracy needs, of either model and of both together, so drawing them keeps the pairing.

worst_quartile is the mean over the quarter of the classes with the lowest accuracy, each model's own: naming the
classes by one model's result would favour the other.

Shapes: N test images, C classes, S resamplings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdpr.bootstrap import drawn_counts

if TYPE_CHECKING:
    import numpy as np

WORST = "worst_quartile"
WORST_SHARE = 4  # one class in so many
WORTH = ((100, 100), (100, 0), (0, 100), (0, 0))  # of each outcome, in percent: to the challenger, to the opponent


@dataclass(frozen=True)
class Figure:
    """A group's accuracy, or a difference of accuracies, in percentage points, and its lower confidence bound."""

    value: float
    lower: float


@dataclass(frozen=True)
class Comparison:
    """By group: the challenger's accuracy, and challenger minus opponent. Groups without a test image are absent."""

    accuracy: Mapping[str, Figure]
    gain: Mapping[str, Figure]


def compare(
    right_N: np.ndarray,
    opponent_right_N: np.ndarray,
    label_N: np.ndarray,
    groups: Mapping[str, Sequence[int]],
    *,
    confidence: float,
    resamplings: int,
    seed: int,
) -> Comparison:
    """`groups` maps all, many, medium and few to class indices; worst_quartile is added. Bounds are one-sided."""
    import numpy as np

    outcome_N = 2 * (1 - right_N.astype(np.int64)) + (1 - opponent_right_N.astype(np.int64))
    classes = int(label_N.max()) + 1
    count_C4 = np.bincount(label_N * 4 + outcome_N, minlength=classes * 4).reshape(classes, 4)
    tested = np.flatnonzero(count_C4.sum(axis=1))
    count_C4 = count_C4[tested]
    masks = {group: np.isin(tested, np.asarray(indices, dtype=np.int64)) for group, indices in groups.items()}
    masks = {group: mask_C for group, mask_C in masks.items() if mask_C.any()}
    measured = _by_group(count_C4[None], masks)
    drawn = [_by_group(block_SC4, masks) for block_SC4 in drawn_counts(count_C4, resamplings=resamplings, seed=seed)]
    accuracy, gain = {}, {}
    for group, pair_12 in measured.items():
        ours, theirs = (float(value) for value in pair_12[0])
        pair_S2 = np.concatenate([block[group] for block in drawn])
        accuracy[group] = Figure(ours, float(np.quantile(pair_S2[:, 0], 1 - confidence)))
        gain[group] = Figure(ours - theirs, float(np.quantile(pair_S2[:, 0] - pair_S2[:, 1], 1 - confidence)))
    return Comparison(accuracy, gain)


def _by_group(count_SC4: np.ndarray, masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Class-balanced accuracy in percent, (S, 2) a group: of the challenger and of its opponent."""
    import numpy as np

    image_C1 = count_SC4[0].sum(axis=1)[:, None]
    accuracy_SC2 = (count_SC4 @ np.array(WORTH)) / image_C1
    means = {group: accuracy_SC2[:, mask_C].mean(axis=1) for group, mask_C in masks.items()}
    worst_classes = -(-accuracy_SC2.shape[1] // WORST_SHARE)
    lowest_SC2 = np.partition(accuracy_SC2, worst_classes - 1, axis=1)[:, :worst_classes]
    return means | {WORST: lowest_SC2.mean(axis=1)}
