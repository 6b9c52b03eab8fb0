"""The score table: class-balanced accuracy of every branch by shot group, and its figures as people read them.

Report, summary, compare, the Kubeflow view, the model card and the metrics that Git tracks all show this one table.
It needs neither numpy nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdpr.artifacts.evaluated import GROUPS

Metrics = Mapping[str, Mapping[str, float]]  # metrics.json: branch -> figure -> value, all but nll as fractions
Interval = tuple[float, float]

# Every branch there may be, in the order of tables and charts, with the name people read.
BRANCHES = {
    "zero_shot": "Zero-shot (frozen CLIP)",
    "base": "Base (prompt tuner)",
    "routed": "Routed (knowledge)",
    "fused": "Fused (final answer)",
}
# What costs no tuning, on the same data: accuracies by group, nothing else.
BASELINES = {
    "chance": "Chance",
    "nearest_mean": "Nearest class mean (frozen features)",
    "logistic": "Logistic regression (frozen features)",
}
# Ablations that tables and sentences quote by name.
DROP = "without_"
SHUFFLED = "shuffled_sentences"  # every class gets those of another one
NAMES_ONLY = "names_only"  # the class name in the place of each of its sentences
MOST, LEAST = f"{DROP}most_weighted", f"{DROP}least_weighted"  # the deletion test: per image, of its answer's sentences
ROWS = {name: (BASELINES | BRANCHES)[name] for name in ("chance", "zero_shot", "nearest_mean", "logistic", *BRANCHES)}
NO_FIGURE = "–"


def points(fraction: float | None) -> str:
    """A fraction as percentage points with one decimal; a dash for None."""
    return NO_FIGURE if fraction is None else f"{round(100 * fraction, 1) + 0.0:.1f}"


def signed_points(difference: float | None) -> str:
    """A difference of fractions as percentage points with sign and one decimal; a dash for None."""
    return NO_FIGURE if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def span(interval: Interval) -> str:
    """The bounds of a fraction as percentage points."""
    return f"{points(interval[0])} to {points(interval[1])}"


def signed_span(interval: Interval) -> str:
    """The bounds of a difference of fractions as percentage points with signs."""
    return f"{signed_points(interval[0])} to {signed_points(interval[1])}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown. A bar in a cell would end it, and becomes a slash."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def in_percent(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures of metrics.json as people read them: percent, and NLL in nats."""
    return {name: value if name == "nll" else round(100 * value, 4) for name, value in figures.items()}


@dataclass(frozen=True)
class ScoreTable:
    """`rows`: name -> group -> accuracy as a fraction. `groups` are the columns; a row may lack some."""

    groups: Sequence[str]
    rows: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, metrics: Metrics) -> ScoreTable:
        """Baselines and branches of metrics.json under their names; the columns are the groups of fused."""
        return cls(
            groups=[group for group in GROUPS if group in metrics["fused"]],
            rows={name: metrics[branch] for branch, name in ROWS.items() if branch in metrics},
        )

    def cells(self, name: str) -> list[str]:
        """The row's accuracies in percent."""
        return [points(self.rows[name].get(group)) for group in self.groups]

    def gain_cells(self, name: str, reference: str) -> list[str]:
        """The row `name` minus the row `reference`, in points."""
        row, other = self.rows[name], self.rows[reference]
        return [
            signed_points(row[group] - other[group] if group in row and group in other else None)
            for group in self.groups
        ]


def write_scores(folder: Path, metrics: Metrics) -> None:
    """GROUP.json of every group: accuracy of each branch in percent, the model's answer first.

    A file per group and short keys make `dvc metrics show` a table that fits 80 columns; Git tracks them.
    """
    folder.mkdir()
    for group in ScoreTable.of(metrics).groups:
        branches = [branch for branch in reversed(BRANCHES) if group in metrics.get(branch, {})]
        percent = {branch: round(100 * metrics[branch][group], 1) for branch in branches}
        (folder / f"{group}.json").write_text(json.dumps(percent, indent=2) + "\n", encoding="utf-8")
