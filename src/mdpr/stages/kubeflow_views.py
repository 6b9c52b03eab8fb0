"""Copies of a stage's outputs in the forms that the Kubeflow UI draws: numbers, a confusion matrix, a page."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Protocol

from mdpr.artifacts import read_metrics
from mdpr.stages.kubeflow import Artifact

logger = logging.getLogger(__name__)
CONFUSION_MAX_CLASSES = 100  # the matrix is drawn by a browser, and kept in the metadata store


class ConfusionView(Protocol):
    """The part of `kfp.dsl.ClassificationMetrics` that is used here."""

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None: ...


def show_metrics(evaluation: Artifact, view: Artifact) -> None:
    """metrics.json, each value as branch.figure."""
    for branch, figures in read_metrics(Path(evaluation.path)).items():
        view.metadata.update({f"{branch}.{figure}": value for figure, value in figures.items()})


def show_confusion(evaluation: Artifact, view: ConfusionView) -> None:
    """confusion.csv (columns actual, predicted; one row a test image) as a matrix, rows actual."""
    import pandas as pd

    pairs = pd.read_csv(Path(evaluation.path) / "confusion.csv", dtype=str, keep_default_na=False)
    names = sorted(set(pairs["actual"]) | set(pairs["predicted"]))
    if len(names) > CONFUSION_MAX_CLASSES:
        logger.info("no confusion matrix in the UI: %d classes, at most %d", len(names), CONFUSION_MAX_CLASSES)
        return
    counts = pd.crosstab(pairs["actual"], pairs["predicted"]).reindex(index=names, columns=names, fill_value=0)
    view.log_confusion_matrix(names, counts.to_numpy().tolist())


def show_page(source: Artifact, name: str, view: Artifact) -> None:
    """One HTML file of an output as an artifact of its own, which the UI opens."""
    shutil.copyfile(Path(source.path) / name, view.path)
