"""A result in words, for the report and `mdpr summary`: lines on what is wrong and what routing is worth, cells.

Nothing is computed here that a file of evaluation/ does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

import pandas as pd

from mdpr.artifacts import Biases, RoutingCheck
from mdpr.evaluation.predictions import final_branch
from mdpr.evaluation.score_table import (
    BASELINES,
    BRANCHES,
    LEAST,
    MOST,
    NAMES_ONLY,
    NO_FIGURE,
    SHUFFLED,
    Interval,
    Metrics,
    points,
    signed_points,
    signed_span,
    span,
)
from mdpr.pages import label

if TYPE_CHECKING:
    from mdpr.evaluation.tables import Results

FAR_LARGER = 4  # times the backbone's input: of a detail's 4 x 4 pixels the model sees one
NOTHING = 0.01  # a fraction: an interval around 0 that is wider than this shows nothing either way
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
VARIANT_TITLES = {  # where it is not the name itself
    "without_logit_adjustment": "Without the logit adjustment",
    "five_crop_ensemble": "Five-crop ensemble",
    "five_crop_flip_ensemble": "Five crops, flipped too",
    "lift_ensemble": "Five crops, logits averaged (LIFT)",
}
NO_GROUPS = "no such groups"


def diagnose(results: Results) -> list[str]:
    """Lines to read before the scores, most serious first; empty if nothing is wrong."""
    scores, lines = results.scores, []
    answers, labels = results.predictions[f"{final_branch(results.predictions)}_top1"], results.predictions["label"]
    if answers.nunique() == 1 < labels.nunique():
        lines.append("The model gives the same class for every image: it has learned nothing.")
    for name, shown in (("zero_shot", "The frozen model"), *BASELINES.items()):
        gain = results.intervals.gain_of_fused.get(name)
        if gain and gain["all"][1] < 0:
            loss = points(scores[name]["all"] - scores["fused"]["all"])
            lines.append(f"{shown} is better: tuning costs {loss} points of accuracy over all classes.")
    best = max((branch for branch in ("base", "routed") if branch in scores), key=lambda key: scores[key]["all"])
    loss_to_branch = scores[best]["all"] - scores["fused"]["all"]
    if "routed" in scores and loss_to_branch > 0 and not _overlap(results, best):
        lines.append(f"The final answer is {points(loss_to_branch)} points below its own branch {BRANCHES[best]}.")
    pictures = results.pictures
    if pictures.short_side_px > FAR_LARGER * pictures.input_px:
        lines.append(
            f"The pictures are far larger than what the model sees: a short side of {pictures.short_side_px:,.0f} px "
            f"(median), the backbone's input {pictures.input_px} px. Fine detail is lost: cut them to what matters, or "
            "use a backbone with a larger input."
        )
    if (line := sentences_line(results.variants)) and not _sentences_count(results.variants):
        lines.append(line)
    return lines


def routing_lines(results: Results) -> list[str]:
    """Lines on the worth of the sentences and their routing weights; empty for a model without a router."""
    check, lines = results.routing, []
    if line := sentences_line(results.variants):
        lines.append(line)
    costs = {name: _gain(results.variants, name) for name in (NAMES_ONLY, MOST, LEAST)}
    if names := costs[NAMES_ONLY]:
        lines.append(f"With the class name in place of each sentence: {with_interval(*names)}.")
    if (most := costs[MOST]) and (least := costs[LEAST]) and check.deletion is not None and check.deletion_interval:
        matters = check.deletion_interval[0] > 0
        shown = "so the weights say which sentence matters" if matters else "so the weights do not show what matters"
        lines.append(
            f"Leaving out the sentence with the largest weight changes accuracy by {signed_points(most[0])} points, "
            f"the one with the smallest weight by {signed_points(least[0])}: a difference of "
            f"{with_interval(check.deletion, check.deletion_interval)}, {shown}."
        )
    if line := faithfulness_line(check):
        lines.append(line)
    if check.oracle:
        lines.append(
            f"An answer that knows what each picture really shows would reach {points(check.oracle['all'])} %."
        )
    return lines


def faithfulness_line(check: RoutingCheck) -> str | None:
    """How well the routing weights follow the pictures; None if it is not known what these show."""
    if not check.faithfulness:
        return None
    return (
        f"Routing weights separate the pictures that show a dimension from the others with an AUC of "
        f"{mean(check.faithfulness.values()):.2f} (mean over dimensions; 0.5 is chance, 1 is never wrong)."
    )


def sentences_line(variants: pd.DataFrame) -> str | None:
    """The cost of the sentences of other classes, from variants.csv; None if that was not measured."""
    shuffled = _gain(variants, SHUFFLED)
    if shuffled is None:
        return None
    gain, (low, high) = shuffled
    change = with_interval(gain, (low, high))
    measured = f"with the sentences of other classes, and no training on them, accuracy changes by {change}"
    if _sentences_count(variants):
        return f"The sentences count: {measured}."
    if low > -NOTHING and high < NOTHING:
        return f"The sentences change nothing here: {measured}."
    return f"It is not shown that the sentences count: {measured}."


def _sentences_count(variants: pd.DataFrame) -> bool:
    shuffled = _gain(variants, SHUFFLED)
    return shuffled is not None and shuffled[1][1] < 0


def _gain(variants: pd.DataFrame, name: str) -> tuple[float, Interval] | None:
    """Gain of a variant over the model and its interval."""
    rows = variants.loc[variants["variant"] == name, ["gain", "gain_low", "gain_high"]].to_numpy(dtype=float).tolist()
    return (rows[0][0], (rows[0][1], rows[0][2])) if rows else None


def _overlap(results: Results, branch: str) -> bool:
    """Whether the intervals of a branch and of the final answer overlap."""
    (low, _), (_, high) = results.intervals.accuracy[branch]["all"], results.intervals.accuracy["fused"]["all"]
    return low < high


def with_interval(value: float, interval: Interval) -> str:
    """A difference of fractions and its bounds, in points."""
    return f"{signed_points(value)} points (95 % interval {signed_span(interval)})"


@dataclass(frozen=True)
class Cell:
    """A figure with its interval, both as text; the interval is empty if it has none."""

    value: str
    interval: str = ""


def summary_sentence(results: Results) -> str:
    """The result in one sentence."""
    final, base = results.scores["fused"]["all"], results.scores["base"]["all"]
    interval = results.intervals.accuracy["fused"]["all"]
    tail = results.scores["fused"].get("few")
    few = "" if tail is None else f", and {points(tail)} % on few-shot classes"
    over_base = f", {signed_points(final - base)} against its own base branch" if "routed" in results.scores else ""
    images = f"{len(results.predictions):,} test image{'' if len(results.predictions) == 1 else 's'}"
    return (
        f"On {images} of {len(results.classes):,} classes the model reaches "
        f"{points(final)} % class-balanced accuracy (95 % interval {span(interval)}), "
        f"{signed_points(final - results.scores['zero_shot']['all'])} points against zero-shot CLIP{over_base}{few}."
    )


def shown_branches(scores: Metrics) -> list[str]:
    """Branches with a row of their own: of a model that answers as its base, `fused` only repeats `base`."""
    repeats = "routed" not in scores and scores["fused"] == scores["base"]
    return [branch for branch in BRANCHES if branch in scores and not (repeats and branch == "fused")]


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
            cells.append(Cell(points(value), span(interval) if interval else ""))
    return cells


def bias_rows(biases: Biases, branches: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Branch -> slope and rank correlation of every bias, in the order of `BIAS_TITLES`; a dash for None."""
    rows = []
    for branch in branches:
        cells: list[Cell] = []
        for key in BIAS_TITLES:
            bias = biases.branches[branch].get(key)
            if bias is None:
                cells += [Cell(NO_FIGURE)] * 2
                continue
            scale, digits = (1, 2) if key == "by_zero_shot" else (100, 1)
            cells.append(_cell(bias.slope, bias.slope_interval, scale, digits))
            cells.append(_cell(bias.correlation, bias.correlation_interval, 1, 2))
        rows.append((BRANCHES[branch], cells))
    return rows


def _cell(value: float | None, interval: Interval | None, scale: int, digits: int) -> Cell:
    if value is None or interval is None:
        return Cell(NO_FIGURE)
    shown, low, high = (f"{round(scale * figure, digits) + 0.0:+.{digits}f}" for figure in (value, *interval))
    return Cell(shown, f"{low} to {high}")


def variant_title(name: str) -> str:
    """`without_functionality` as people read it: Without functionality."""
    return VARIANT_TITLES.get(name, label(name))
