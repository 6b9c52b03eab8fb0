"""A stage's outputs in the forms that the Kubeflow UI draws: numbers, a confusion matrix, a page, a short table."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mdpr.artifacts import read_metrics, read_run, read_table
from mdpr.artifacts.prepared import CLASSES_FILE
from mdpr.errors import TrackingError
from mdpr.evaluation.score_table import BRANCHES, Metrics, ScoreTable, in_percent
from mdpr.kubeflow.components import Artifact, one_line_errors, read_sections
from mdpr.params import parse_params

if TYPE_CHECKING:
    from mdpr.mlops.registry import Version

logger = logging.getLogger(__name__)
CONFUSION_MAX_CLASSES = 100  # the matrix is drawn by a browser, and kept in the metadata store


class ConfusionView(Protocol):
    """The part of `kfp.dsl.ClassificationMetrics` that is used here."""

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None: ...


def show_metrics(evaluation: Artifact, view: Artifact) -> None:
    """metrics.json, each value as branch.figure, in percent (NLL in nats)."""
    for branch, figures in read_metrics(Path(evaluation.path)).items():
        view.metadata.update({f"{branch}.{figure}": value for figure, value in in_percent(figures).items()})


def show_confusion(evaluation: Artifact, view: ConfusionView) -> None:
    """confusion.csv (columns actual, predicted; one row a test image) as a matrix, rows actual."""
    import pandas as pd

    pairs = read_table(Path(evaluation.path), "confusion.csv")
    names = sorted(set(pairs["actual"]) | set(pairs["predicted"]))
    if len(names) > CONFUSION_MAX_CLASSES:
        logger.info("no confusion matrix in the UI: %d classes, at most %d", len(names), CONFUSION_MAX_CLASSES)
        return
    counts = pd.crosstab(pairs["actual"], pairs["predicted"]).reindex(index=names, columns=names, fill_value=0)
    view.log_confusion_matrix(names, counts.to_numpy().tolist())


def show_page(source: Artifact, name: str, view: Artifact) -> None:
    """One HTML file of an output as an artifact of its own, which the UI opens."""
    shutil.copyfile(Path(source.path) / name, view.path)


def copy_classes(prepared: Artifact, classes: Artifact) -> None:
    """The class list as an artifact of its own: Kubeflow copies every input whole, used or not."""
    folder = Path(classes.path)
    folder.mkdir()
    shutil.copyfile(Path(prepared.path) / CLASSES_FILE, folder / CLASSES_FILE)


def show_summary(evaluation: Artifact, params: str, view: Artifact) -> None:
    """The model's accuracy by shot group beside the zero-shot model's and the champion's, as Markdown.

    `params` is YAML text with the section tracking. A registry that does not answer leaves the champion's line out and
    says so: the scores do not depend on it.
    """
    from mdpr.mlops.registry import find_champion

    with one_line_errors():
        tracking = parse_params(read_sections(params, "params")).tracking
        folder = Path(evaluation.path)
        try:
            champion = find_champion(tracking.model_name)
            note = _compare(champion, read_run(folder).test_sha256)
        except TrackingError as error:
            champion, note = None, f"The champion is not known: {error}"
        Path(view.path).write_text(summary_table(read_metrics(folder), champion, note), encoding="utf-8")


def _compare(champion: Version | None, test_sha256: str | None) -> str:
    from mdpr.mlops.registry import TEST_SET_TAG

    if champion is None:
        return "There is no champion yet."
    same = champion.tags.get(TEST_SET_TAG) == test_sha256
    return "" if same else "The champion was scored on other test images: the two lines do not compare."


def _as_fractions(figures_percent: Mapping[str, float]) -> dict[str, float]:
    return {name: value / 100 for name, value in figures_percent.items()}


def summary_table(metrics: Metrics, champion: Version | None, note: str = "") -> str:
    """The score table as Markdown: accuracies in percent, gains of the model's answer in points.

    A group without classes is left out.
    """
    table, own, frozen = ScoreTable.of(metrics), BRANCHES["fused"], BRANCHES["zero_shot"]
    references = [frozen]
    if champion:
        references.append(f"Champion, version {champion.number}")
        table = replace(table, rows={**table.rows, references[-1]: _as_fractions(champion.figures())})
    rows = [[f"**{name}**" if name == own else name, *table.cells(name)] for name in table.rows]
    rows += [[f"gain over {name}", *table.gain_cells(own, name)] for name in references]
    lines = [
        "# Test accuracy",
        "",
        *(f"| {' | '.join(row)} |" for row in [["percent", *table.groups], ["---"] * (1 + len(table.groups)), *rows]),
    ]
    return "\n".join([*lines, *(["", note] if note else [])]) + "\n"
