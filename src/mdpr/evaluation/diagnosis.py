"""Plain lines about a result: what is wrong with a model, and what its routing is worth.

The report and `mdpr summary` show them; nothing is computed here that another file of evaluation/ does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import pandas as pd

from mdpr.evaluation.ablations import LEAST, MOST, NAMES_ONLY
from mdpr.evaluation.faithfulness import RoutingCheck
from mdpr.evaluation.predictions import final_branch
from mdpr.evaluation.score_table import BASELINES, BRANCHES, points, signed_points
from mdpr.evaluation.tables import Results

FAR_LARGER = 4  # times the backbone's input: of a detail's 4 x 4 pixels the model sees one
NOTHING = 0.01  # a fraction: an interval around 0 that is wider than this shows nothing either way
SHUFFLED = "shuffled_sentences"


def diagnose(results: Results) -> list[str]:
    """What a reader must know before the scores, most serious first; empty if nothing is wrong."""
    scores, lines = results.scores, []
    answers = results.predictions[f"{final_branch(results.predictions)}_top1"]
    if answers.nunique() == 1 and len(results.classes) > 1:
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
    if pictures and pictures.short_side_px > FAR_LARGER * pictures.input_px:
        lines.append(
            f"The pictures are far larger than what the model sees: a short side of {pictures.short_side_px:,.0f} px "
            f"(median), the backbone's input {pictures.input_px} px. Fine detail is lost: cut them to what matters, or "
            "use a backbone with a larger input."
        )
    if (line := sentences_line(results.variants)) and not _sentences_count(results.variants):
        lines.append(line)
    return lines


def routing_lines(results: Results) -> list[str]:
    """What the sentences and their routing weights are worth; empty for a model without a router."""
    check, lines = results.routing, []
    if line := sentences_line(results.variants):
        lines.append(line)
    costs = {name: _gain(results.variants, name) for name in (NAMES_ONLY, MOST, LEAST)}
    if names := costs[NAMES_ONLY]:
        lines.append(f"With the class name in place of each sentence: {with_interval(*names)}.")
    if (most := costs[MOST]) and (least := costs[LEAST]) and check.deletion is not None and check.deletion_interval:
        low, high = check.deletion_interval
        shown = "so the weights say which sentence matters" if low > 0 else "so the weights do not show what matters"
        lines.append(
            f"Leaving out the sentence with the largest weight changes accuracy by {signed_points(most[0])} points, "
            f"the one with the smallest weight by {signed_points(least[0])}: a difference of "
            f"{with_interval(check.deletion, low, high)}, {shown}."
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
        f"Routing weights tell the pictures that show a dimension from the others with an AUC of "
        f"{mean(check.faithfulness.values()):.2f} (mean over dimensions; 0.5 is chance, 1 is never wrong)."
    )


def sentences_line(variants: pd.DataFrame) -> str | None:
    """What the sentences of other classes cost, from variants.csv; None if that was not measured."""
    shuffled = _gain(variants, SHUFFLED)
    if shuffled is None:
        return None
    change = with_interval(*shuffled)
    measured = f"with the sentences of other classes, and no training on them, accuracy changes by {change}"
    if _sentences_count(variants):
        return f"The sentences count: {measured}."
    _, low, high = shuffled
    if low > -NOTHING and high < NOTHING:
        return f"The sentences change nothing here: {measured}."
    return f"It is not shown that the sentences count: {measured}."


def _sentences_count(variants: pd.DataFrame) -> bool:
    shuffled = _gain(variants, SHUFFLED)
    return shuffled is not None and shuffled[2] < 0


def _gain(variants: pd.DataFrame, name: str) -> tuple[float, float, float] | None:
    """Gain of a variant over the model and its interval."""
    rows = variants[variants["variant"] == name]
    if rows.empty:
        return None
    gain, low, high = rows[["gain", "gain_low", "gain_high"]].to_numpy(dtype=float)[0].tolist()
    return gain, low, high


def _overlap(results: Results, branch: str) -> bool:
    """Whether the intervals of a branch and of the final answer overlap."""
    (low, _), (_, high) = results.intervals.accuracy[branch]["all"], results.intervals.accuracy["fused"]["all"]
    return low < high


def with_interval(value: float, low: float, high: float) -> str:
    return f"{signed_points(value)} points (95 % interval {signed_points(low)} to {signed_points(high)})"


def auc_rows(results: Results) -> Sequence[tuple[str, str]]:
    """Dimension and AUC, the best first."""
    ranked = sorted(results.routing.faithfulness.items(), key=lambda item: -item[1])
    return [(dimension, f"{value:.2f}") for dimension, value in ranked]
