"""The confusion of classes against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from mdpr.evaluation.report.confusion import confusion_block, confusion_figure
from mdpr.evaluation.report.document import ReportContent


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


def test_without_a_mistake_no_class_is_said_to_be_taken_for_another(content: Callable[..., ReportContent]) -> None:
    results = content(4, 5).results
    right = results.predictions.assign(fused_top1=results.predictions["label"])
    assert confusion_figure(replace(results, predictions=right), ["a", "b", "c", "d"]).alternative.endswith("0 %.")
    assert "taken for" in confusion_figure(results, ["a", "b", "c", "d"]).alternative
