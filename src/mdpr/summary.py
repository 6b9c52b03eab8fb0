"""The end of `make demo` and `mdpr summary`: scores, gains, what the sentences are worth, champion, gate, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdpr.artifacts import (
    Intervals,
    Promotion,
    RoutingCheck,
    read_intervals,
    read_metrics,
    read_routing_check,
    read_table,
)
from mdpr.errors import ArtifactError, printable
from mdpr.evaluation.report.text import SHUFFLED, faithfulness_line, sentences_line, with_interval
from mdpr.evaluation.score_table import BRANCHES, Metrics, ScoreTable, points
from mdpr.params import TrackingParams

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

OTHER_SENTENCES = "Fused, sentences of other classes"
COMPARED = {"zero_shot": "the frozen model", "base": "its own base"}
DECISIONS = {"promoted": "promoted", "kept": "not promoted"}


@dataclass(frozen=True)
class Summary:
    """The end of the flow: figures of evaluation/, and the registry. `champion` is None if no version has the alias.

    `variants` is variants.csv, without rows if only the model itself was scored.
    """

    scores: Metrics
    intervals: Intervals
    variants: pd.DataFrame
    routing: RoutingCheck
    promotion: Promotion
    champion: str | None
    report: Path


def read_summary(evaluation: Path, promotion: Path, tracking: TrackingParams) -> Summary:
    """Gather the summary; raises `ArtifactError` if the flow has not run to its end."""
    from mdpr.mlops.registry import find_champion

    report = evaluation / "report.html"
    for path in (evaluation / "metrics.json", report, promotion):
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: run `dvc repro` first")
    champion = find_champion(tracking.model_name)  # someone may have moved it since the gate decided
    return Summary(
        read_metrics(evaluation),
        read_intervals(evaluation),
        read_table(evaluation, "variants.csv"),
        read_routing_check(evaluation),
        Promotion.read(promotion),
        champion.number if champion else None,
        report,
    )


def short_reason(decision: Promotion) -> str:
    """The gate's reason; if all its checks passed, their number in the place of their figures."""
    reason, found, _ = decision.reason.partition(" passed: ")
    return f"{reason} All {len(decision.checks)} checks passed." if found else decision.reason


def render(summary: Summary) -> RenderableType:
    """The summary for a terminal: one table, then a line each for gains, sentences, champion, gate and report."""
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
    for row in summary.variants[summary.variants["variant"] == SHUFFLED].to_dict("records"):
        table.add_row(OTHER_SENTENCES, *(points(row[group]) for group in scores.groups))
    decision = summary.promotion
    champion = f"version {summary.champion} of {decision.model_name}" if summary.champion else "none"
    facts = {
        "champion": f"{champion} (MLflow registry)",
        "gate": f"version {decision.version or 'none'} {DECISIONS[decision.decision]}: {short_reason(decision)}",
        "report": str(summary.report),
    }
    found = [*gains(summary), sentences_line(summary.variants), faithfulness_line(summary.routing)]
    lines = [*filter(None, found), *(f"{key}: {fact}" for key, fact in facts.items())]
    return Group(table, *(Text(printable(line), overflow="fold") for line in lines))


def gains(summary: Summary) -> list[str]:
    """The gain of the final answer over the frozen model and, of a model that routes, over its own base."""
    final = summary.scores["fused"]["all"]
    return [
        f"Gain over {name}: "
        f"{with_interval(final - summary.scores[branch]['all'], summary.intervals.gain_of_fused[branch]['all'])}."
        for branch, name in COMPARED.items()
        if branch in summary.intervals.gain_of_fused and (branch != "base" or "routed" in summary.scores)
    ]
