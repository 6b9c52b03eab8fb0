"""Everything that follows from the predictions alone, and the files it is written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mdpr.artifacts import ClassInfo, Intervals, write_json, write_predictions
from mdpr.evaluation.intervals import intervals
from mdpr.evaluation.metrics import score
from mdpr.evaluation.tables import confusion_pairs, display_names, per_class_table


@dataclass(frozen=True)
class Results:
    """The scored test set. `scores` and `intervals` are what metrics.json and intervals.json hold."""

    classes: Sequence[ClassInfo]
    predictions: pd.DataFrame
    scores: Mapping[str, Mapping[str, float]]
    intervals: Intervals
    per_class: pd.DataFrame

    @classmethod
    def of(cls, predictions: pd.DataFrame, classes: Sequence[ClassInfo], rival_C: np.ndarray) -> Results:
        """Score `predictions`; `rival_C` is the class each class is most confused with by the frozen model."""
        shots = [item.shot for item in classes]
        return cls(
            classes=classes,
            predictions=predictions,
            scores=score(predictions, shots),
            intervals=intervals(predictions, shots),
            per_class=per_class_table(predictions, classes, rival_C),
        )

    def write(self, evaluation: Path) -> None:
        """metrics.json, intervals.json, per_class.csv, confusion.csv and predictions.parquet."""
        write_json(evaluation / "metrics.json", self.scores)
        write_json(evaluation / "intervals.json", self.intervals)
        write_predictions(evaluation, self.predictions)
        self.per_class.to_csv(evaluation / "per_class.csv", index=False, float_format="%.6f")
        pairs = confusion_pairs(self.predictions, display_names(self.classes))
        pairs.to_csv(evaluation / "confusion.csv", index=False)
