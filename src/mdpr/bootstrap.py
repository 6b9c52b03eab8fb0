"""Bootstrap over test images, stratified by class, for class-balanced means.

Drawing n_c of a class's n_c images with replacement makes the counts of their outcomes (right or wrong; won,
lost or alike) multinomial. So the counts are drawn and not the images: the same distribution, and no image is
touched (percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

Shapes: C classes, K outcomes, S resamplings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DRAWN_AT_ONCE = 3_000_000  # counts held in memory at one time, 8 bytes each; the result does not depend on it


def drawn_counts(count_CK: np.ndarray, *, resamplings: int, seed: int) -> Iterator[np.ndarray]:
    """Resampled outcome counts in blocks (S', C, K) that make up `resamplings` S; every class must have an image."""
    import numpy as np

    image_C = count_CK.sum(axis=1)
    share_CK = count_CK / image_C[:, None]
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // max(1, share_CK.size))
    for start in range(0, resamplings, at_once):
        yield rng.multinomial(image_C, share_CK, size=(min(at_once, resamplings - start), len(image_C)))


def bootstrap_means(
    count_CK: np.ndarray,
    value_K: Sequence[float],
    members: Mapping[str, Sequence[int]],
    *,
    resamplings: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """S resampled values of each group's class-balanced mean outcome.

    count_CK[c, k] is the number of class c's images with outcome k, worth value_K[k]; `members` maps a group
    to its class indices. Classes without an image do not count; a group without an image is left out.
    """
    import numpy as np

    image_C = count_CK.sum(axis=1)
    tested = np.flatnonzero(image_C)
    of_group = {group: np.isin(tested, np.asarray(indices, dtype=np.int64)) for group, indices in members.items()}
    blocks: dict[str, list[np.ndarray]] = {group: [] for group, mask_C in of_group.items() if mask_C.any()}
    for drawn_SCK in drawn_counts(count_CK[tested], resamplings=resamplings, seed=seed):
        mean_SC = (drawn_SCK @ np.asarray(value_K, dtype=np.float64)) / image_C[tested]
        for group, parts in blocks.items():
            parts.append(mean_SC[:, of_group[group]].mean(axis=1))
    return {group: np.concatenate(parts) for group, parts in blocks.items()}
