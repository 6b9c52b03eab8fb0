"""What `make demo` ends with: the scores, the registry's champion, the gate's word and where the report lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdpr.artifacts import Promotion, read_metrics, read_promotion
from mdpr.errors import ArtifactError, printable
from mdpr.evaluation.score_table import BRANCHES, Metrics, ScoreTable
from mdpr.params import TrackingParams

if TYPE_CHECKING:
    from rich.console import RenderableType

VERDICTS = {"promoted": "promoted", "kept": "not promoted"}


@dataclass(frozen=True)
class Summary:
    """The end of the flow. `scores` is what metrics.json holds; `champion` is None where no version has the alias."""

    scores: Metrics
    promotion: Promotion
    champion: str | None
    report: Path


def read_summary(evaluation: Path, promotion: Path, tracking: TrackingParams) -> Summary:
    """Gather the summary; raises `ArtifactError` where the flow has not run to its end."""
    report = evaluation / "report.html"
    for path in (evaluation / "metrics.json", report, promotion):
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: run `dvc repro` first")
    scores, decision = read_metrics(evaluation), read_promotion(promotion)
    return Summary(scores, decision, champion_version(tracking.model_name), report)


def champion_version(model_name: str) -> str | None:
    """The version behind the alias `champion` right now, which someone may have moved since the gate."""
    from mdpr.mlops.registry import CHAMPION, Registry
    from mdpr.mlops.store import connect

    version = Registry(connect(), model_name).get_by_alias(CHAMPION)
    return version.number if version else None


def render(summary: Summary) -> RenderableType:
    """The summary for a terminal: one table, then a line each for champion, gate and report."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    scores = ScoreTable.of(summary.scores)
    table = Table(title="Class-balanced accuracy on the test set, in percent")
    table.add_column("branch", no_wrap=True)
    for group in scores.groups:
        table.add_column(group, justify="right")
    for name in scores.rows:
        style = "bold" if name == BRANCHES["fused"] else None
        table.add_row(name, *scores.cells(name), style=style, end_section=name == BRANCHES["zero_shot"])
    decision = summary.promotion
    champion = f"version {summary.champion} of {decision.model_name}" if summary.champion else "none"
    facts = {
        "champion": f"{champion} (MLflow registry)",
        "gate": f"version {decision.version or 'none'} {VERDICTS[decision.decision]}: {decision.reason}",
        "report": str(summary.report),
    }
    return Group(table, *(Text(printable(f"{key}: {fact}"), overflow="fold") for key, fact in facts.items()))
