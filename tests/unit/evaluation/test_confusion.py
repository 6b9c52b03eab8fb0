"""The confusion of classes against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from mdpr.evaluation.report.confusion import confusion_block


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def test_confusion_block_of_all_classes_is_the_confusion_matrix(
    predictions: Callable[..., pd.DataFrame],
) -> None:
    table = predictions(6, 30)
    class_K, share_KK = confusion_block(table, 6, 20)
    assert class_K.tolist() == list(range(6))
    np.testing.assert_allclose(share_KK, confusion_matrix(table["label"], table["fused_top1"], normalize="true"))


def test_confusion_block_holds_the_worst_pair(predictions: Callable[..., pd.DataFrame]) -> None:
    table = predictions(30, 10)
    whole = confusion_matrix(table["label"], table["fused_top1"], normalize="true")
    class_K, share_KK = confusion_block(table, 30, 4)
    np.testing.assert_allclose(share_KK, whole[np.ix_(class_K, class_K)])
    assert off_diagonal(share_KK).max() == off_diagonal(whole).max()
    assert len(class_K) == 4
