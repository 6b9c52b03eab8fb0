"""Zero-shot confusion of the frozen model and the rival of each class. N images, C classes, d joint width."""

from __future__ import annotations

import numpy as np


def confusion_matrix(label_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> np.ndarray:
    """Shares (C, C), float64: row c, of class c's images, how many were taken for each class. Rows sum to 1.

    Normalised a row because the classes are imbalanced. A class without images is the caller's error.
    """
    counts_CC = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts_CC, (label_N, predicted_N), 1)
    totals_C = counts_CC.sum(axis=1)
    assert totals_C.all(), "every class needs at least one image"
    return counts_CC / totals_C[:, None]


def rivals(confusion_CC: np.ndarray, text_Cd: np.ndarray) -> np.ndarray:
    """The class (C,), int64, that each class is most confused with.

    A class that is never confused takes its nearest neighbour by class features `text_Cd` (unit length); ties in the
    confusion go to the nearer one too, so that the order of classes decides nothing.
    Source: Jia et al., Findings of EMNLP 2025 (differential features).
    """
    off_diagonal_CC = confusion_CC.astype(np.float64).copy()
    np.fill_diagonal(off_diagonal_CC, -1)
    nearness_CC = text_Cd.astype(np.float64) @ text_Cd.T.astype(np.float64)
    tied_CC = off_diagonal_CC == off_diagonal_CC.max(axis=1, keepdims=True)
    candidates_CC = np.where(tied_CC, nearness_CC, -np.inf)
    np.fill_diagonal(candidates_CC, -np.inf)
    return candidates_CC.argmax(axis=1)
