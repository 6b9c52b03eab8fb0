"""The report's figures as text: cards, sentences, cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mdpr.artifacts import SHOT_GROUPS, Bias, Biases, ClassInfo
from mdpr.evaluation.report.charts import variant_title
from mdpr.evaluation.score_table import BRANCHES, points, signed_points
from mdpr.evaluation.tables import Results

GROUP_TITLES = {"all": "All classes", "many": "Many-shot", "medium": "Medium-shot", "few": "Few-shot"}
OTHER_FIGURES = {
    "head_tail_gap": "Many − few",
    "worst_class": "Worst class",
    "harmonic_mean": "Harmonic mean",
    "geometric_mean": "Geometric mean",
    "top1": "Top-1",
    "top5": "Top-5",
    "macro_f1": "Macro F1",
    "ece": "ECE",
    "classwise_ece": "Classwise ECE",
    "nll": "NLL (nats)",
}
BIAS_TITLES = {
    "by_count": ("training count", "points per tenfold images"),
    "by_prior": ("estimated pre-training share", "points per tenfold share"),
    "by_zero_shot": ("zero-shot accuracy", "points per point"),
}
NO_GROUPS = "no such groups"


@dataclass(frozen=True)
class Card:
    """A headline figure: accuracy of the model on one group of classes."""

    title: str
    value: str
    interval: str
    gain: str
    gain_interval: str
    verdict: str


@dataclass(frozen=True)
class Cell:
    """A figure with its interval, both as text; the interval is empty where there is none."""

    value: str
    interval: str = ""


def make_card(results: Results, group: str) -> Card:
    """The model's accuracy on `group`, its interval, and the gain over base (over zero-shot without routing)."""
    scores, intervals = results.scores, results.intervals
    reference, name = ("base", "base") if "routed" in scores else ("zero_shot", "zero-shot")
    low, high = intervals.accuracy["fused"][group]
    gain = scores["fused"][group] - scores[reference][group]
    gain_low, gain_high = intervals.gain_of_fused[reference][group]
    return Card(
        title=GROUP_TITLES[group],
        value=points(scores["fused"][group]),
        interval=f"{points(low)} to {points(high)}",
        gain=f"{signed_points(gain)} over {name}",
        gain_interval=f"{signed_points(gain_low)} to {signed_points(gain_high)}",
        verdict="good" if gain_low > 0 else "bad" if gain_high < 0 else "",
    )


def summary_sentence(results: Results) -> str:
    """The result in one sentence."""
    final, base = results.scores["fused"]["all"], results.scores["base"]["all"]
    low, high = results.intervals.accuracy["fused"]["all"]
    tail = results.scores["fused"].get("few")
    few = "" if tail is None else f", and {points(tail)} % on few-shot classes alone"
    over_base = f", {signed_points(final - base)} against its own base branch" if "routed" in results.scores else ""
    images = f"{len(results.predictions):,} test image{'' if len(results.predictions) == 1 else 's'}"
    return (
        f"On {images} of {len(results.classes):,} classes the model reaches "
        f"{points(final)} % class-balanced accuracy (95 % interval {points(low)} to {points(high)}), "
        f"{signed_points(final - results.scores['zero_shot']['all'])} points against zero-shot CLIP{over_base}{few}."
    )


def shown_branches(scores: Mapping[str, Any]) -> list[str]:
    """Branches with a row of their own: of a model that answers as its base, `fused` only repeats `base`."""
    repeats = "routed" not in scores and scores["fused"] == scores["base"]
    return [branch for branch in BRANCHES if branch in scores and not (repeats and branch == "fused")]


def class_sizes(classes: Sequence[ClassInfo]) -> dict[str, int]:
    """Number of classes in `all` and in each shot group."""
    return {"all": len(classes)} | {group: sum(item.shot == group for item in classes) for group in SHOT_GROUPS}


def figure_cells(results: Results, branch: str) -> list[Cell]:
    """The cells of `OTHER_FIGURES`, in order."""
    cells = []
    for key in OTHER_FIGURES:
        value, interval = results.scores[branch].get(key), results.intervals.accuracy[branch].get(key)
        if value is None:
            cells.append(Cell(NO_GROUPS))
        elif key == "nll":
            cells.append(Cell(f"{value:.3f}"))
        else:
            cells.append(Cell(points(value), f"{points(interval[0])} to {points(interval[1])}" if interval else ""))
    return cells


def bias_rows(biases: Biases, branches: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Branch -> slope and rank correlation of every bias, in the order of `BIAS_TITLES`; "–" where there is none."""
    rows = []
    for branch in branches:
        cells: list[Cell] = []
        for key in BIAS_TITLES:
            bias = biases.branches[branch].get(key)
            cells += [Cell("–"), Cell("–")] if bias is None else bias_cells(bias, 1 if key == "by_zero_shot" else 100)
        rows.append((BRANCHES[branch], cells))
    return rows


def bias_cells(bias: Bias, scale: int) -> list[Cell]:
    """Slope times `scale`, and correlation."""
    digits = 1 if scale == 100 else 2
    return [
        _cell(bias.slope, bias.slope_interval, scale, digits),
        _cell(bias.correlation, bias.correlation_interval, 1, 2),
    ]


def _cell(value: float | None, interval: tuple[float, float] | None, scale: int, digits: int) -> Cell:
    if value is None or interval is None:
        return Cell("–")
    low, high = (f"{round(scale * bound, digits) + 0.0:+.{digits}f}" for bound in interval)
    return Cell(f"{round(scale * value, digits) + 0.0:+.{digits}f}", f"{low} to {high}")


def variant_rows(variants: pd.DataFrame, groups: Sequence[str]) -> list[tuple[str, str, list[Cell]]]:
    """Title, kind and cells (gain, then the groups) of every variant."""
    rows = []
    for row in variants.to_dict("records"):
        interval = f"{signed_points(row['gain_low'])} to {signed_points(row['gain_high'])}"
        cells = [Cell(signed_points(row["gain"]), interval), *(Cell(points(row[group])) for group in groups)]
        rows.append((variant_title(str(row["variant"])), str(row["kind"]), cells))
    return rows
