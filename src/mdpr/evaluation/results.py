"""Everything that follows from the test set's answers, and the files it is written to and read from again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mdpr.artifacts import (
    Biases,
    ClassInfo,
    Intervals,
    read_biases,
    read_intervals,
    read_metrics,
    read_predictions,
    read_table,
    write_json,
    write_predictions,
)
from mdpr.errors import ArtifactError
from mdpr.evaluation.ablations import COLUMNS, variant_table
from mdpr.evaluation.metrics import score
from mdpr.evaluation.scoring import Passed
from mdpr.evaluation.tables import confusion_pairs, display_names, per_class_table, reliability_table, routing_table
from mdpr.evaluation.uncertainty import RESAMPLINGS, biases, intervals


@dataclass(frozen=True)
class Results:
    """The scored test set. `scores`, `intervals` and `biases` are what the JSON files of evaluation/ hold."""

    classes: Sequence[ClassInfo]
    predictions: pd.DataFrame
    scores: Mapping[str, Mapping[str, float]]
    intervals: Intervals
    biases: Biases
    per_class: pd.DataFrame
    reliability: pd.DataFrame
    variants: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))

    @classmethod
    def of(
        cls,
        passed: Passed,
        classes: Sequence[ClassInfo],
        rival_C: np.ndarray,
        log_prior_C: np.ndarray,
        resamplings: int = RESAMPLINGS,
    ) -> Results:
        """Score what one pass gave. `rival_C` is the class each class is most confused with by the frozen model,
        `log_prior_C` the log of its estimated pre-training prior.

        Raises `ArtifactError` where the predictions name a class that is not there, or there is none of them.
        """
        predictions = passed.predictions
        check_label_set(predictions, len(classes))
        shots = [item.shot for item in classes]
        variants = passed.variants
        return cls(
            classes=classes,
            predictions=predictions,
            scores=score(predictions, shots, passed.classwise_ece),
            intervals=intervals(predictions, shots, resamplings),
            biases=biases(predictions, [item.train_images for item in classes], log_prior_C, resamplings),
            per_class=per_class_table(predictions, classes, rival_C),
            reliability=reliability_table(predictions),
            **({} if variants is None else {"variants": variant_table(predictions, variants, passed.kinds, shots)}),
        )

    def write(self, evaluation: Path) -> None:
        """metrics.json, intervals.json, biases.json, predictions.parquet, and the tables that DVC's plots draw."""
        write_json(evaluation / "metrics.json", self.scores)
        write_json(evaluation / "intervals.json", self.intervals)
        write_json(evaluation / "biases.json", self.biases)
        write_predictions(evaluation, self.predictions)
        tables = {
            "per_class": self.per_class,
            "confusion": confusion_pairs(self.predictions, display_names(self.classes)),
            "reliability": self.reliability,
            "routing": routing_table(self.predictions, [item.shot for item in self.classes]),
            "variants": self.variants,
        }
        for name, table in tables.items():
            table.to_csv(evaluation / f"{name}.csv", index=False, float_format="%.6f")

    @classmethod
    def read(cls, evaluation: Path, classes: Sequence[ClassInfo]) -> Results:
        """What `write` wrote, for these classes; raises `ArtifactError` where it is of other ones or incomplete."""
        predictions, per_class = read_predictions(evaluation), read_table(evaluation, "per_class.csv")
        if [str(name) for name in per_class["class"]] != display_names(classes):
            raise ArtifactError(f"{evaluation} holds results of another label set: run evaluate again")
        check_label_set(predictions, len(classes))
        return cls(
            classes=classes,
            predictions=predictions,
            scores=read_metrics(evaluation),
            intervals=read_intervals(evaluation),
            biases=read_biases(evaluation),
            per_class=per_class,
            reliability=read_table(evaluation, "reliability.csv"),
            variants=read_table(evaluation, "variants.csv"),
        )


def check_label_set(predictions: pd.DataFrame, class_count: int) -> None:
    """Raises `ArtifactError` where `predictions` is empty or has a label or an answer outside 0 .. C - 1."""
    if predictions.empty:
        raise ArtifactError("the test set has no image: prepare it with at least one")
    for column in ("label", *(name for name in predictions.columns if name.endswith("_top1"))):
        low, high = int(predictions[column].min()), int(predictions[column].max())
        if low < 0 or high >= class_count:
            outside = low if low < 0 else high
            raise ArtifactError(
                f"the predictions are for another label set: {column} has class {outside}, "
                f"there are {class_count} classes: run evaluate on this data"
            )
