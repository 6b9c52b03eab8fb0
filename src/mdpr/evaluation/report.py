"""report.html: one file that opens anywhere, from disk, in a sandboxed frame, without a network.

Everything is inlined; a content security policy forbids every load, and every script but the report's own (by
hash). Class names and sentences are text to the template (autoescape) and to the charts (SVG text).

Shapes: C classes, K classes shown in the confusion matrix, V dimensions.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from mdpr.artifacts import SHOT_GROUPS, ClassInfo
from mdpr.config import DIMENSIONS
from mdpr.evaluation.charts.accuracy import accuracy_by_count, accuracy_by_zero_shot, confusion
from mdpr.evaluation.charts.knowledge import dimension_label, hidden_prior, routing_by_dimension
from mdpr.evaluation.charts.svg import Figure
from mdpr.evaluation.charts.training import training_curves
from mdpr.evaluation.gallery import GalleryItem
from mdpr.evaluation.metrics import GROUPS, points, signed_points
from mdpr.evaluation.predictions import BRANCHES
from mdpr.evaluation.results import Results
from mdpr.evaluation.tables import confusion_block, display_names, mean_routing

MAX_CONFUSION_CLASSES = 20
GROUP_TITLES = {"all": "All classes", "many": "Many-shot", "medium": "Medium-shot", "few": "Few-shot"}
OTHER_FIGURES = {
    "head_tail_gap": "Many − few",
    "worst_class": "Worst class",
    "harmonic_mean": "Harmonic mean",
    "top1": "Top-1",
    "top5": "Top-5",
    "macro_f1": "Macro F1",
    "ece": "ECE",
    "nll": "NLL (nats)",
}


@dataclass(frozen=True)
class ReportContent:
    """What the report shows beside the results: where they come from, and what they look like."""

    title: str
    results: Results
    history: pd.DataFrame
    selected_epoch: int
    prior_C: np.ndarray
    gallery: Sequence[GalleryItem]
    lineage: Mapping[str, str]


@dataclass(frozen=True)
class Card:
    """A headline figure: accuracy of the model on one group of classes."""

    title: str
    value: str
    interval: str
    gain: str
    gain_interval: str
    helped: bool


def render_report(content: ReportContent) -> str:
    """The report as one HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mdpr.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["points"] = points
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    results = content.results
    groups = [group for group in GROUPS if group in results.scores["fused"]]
    return environment.get_template("report.html.j2").render(
        content=content,
        results=results,
        style=Markup(_asset("report.css")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{digest}",
        summary=summary_sentence(results),
        cards=[make_card(results, group) for group in groups],
        branches={branch: BRANCHES[branch] for branch in shown_branches(results.scores)},
        group_titles={group: GROUP_TITLES[group] for group in groups},
        other_figures=OTHER_FIGURES,
        class_sizes=class_sizes(results.classes),
        figures=make_figures(content),
        dimensions=[dimension_label(key) for key in DIMENSIONS],
        svg=lambda figure: Markup(figure.svg),  # noqa: S704 - Vega escapes the text in it
    )


def shown_branches(scores: Mapping[str, Any]) -> list[str]:
    """Branches with a row of their own: without routing `fused` only repeats `base`."""
    return [branch for branch in BRANCHES if branch in scores and (branch != "fused" or "routed" in scores)]


def class_sizes(classes: Sequence[ClassInfo]) -> dict[str, int]:
    """Number of classes in `all` and in each shot group."""
    return {"all": len(classes)} | {group: sum(item.shot == group for item in classes) for group in SHOT_GROUPS}


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
        helped=gain_low > 0,
    )


def summary_sentence(results: Results) -> str:
    """The result in one sentence."""
    final, base = results.scores["fused"]["all"], results.scores["base"]["all"]
    low, high = results.intervals.accuracy["fused"]["all"]
    tail = results.scores["fused"].get("few")
    few = "" if tail is None else f", and {points(tail)} % on few-shot classes alone"
    over_base = f", {signed_points(final - base)} against its own base branch" if "routed" in results.scores else ""
    return (
        f"On {len(results.predictions):,} test images of {len(results.classes):,} classes the model reaches "
        f"{points(final)} % class-balanced accuracy (95 % interval {points(low)} to {points(high)}), "
        f"{signed_points(final - results.scores['zero_shot']['all'])} points against zero-shot CLIP{over_base}{few}."
    )


def make_figures(content: ReportContent) -> list[Figure]:
    """Every chart that the content allows; routing weights only where there was routing."""
    results = content.results
    classes, predictions = results.classes, results.predictions
    names = display_names(classes)
    branches = [branch for branch in shown_branches(results.scores) if branch != "routed"]
    class_K, share_KK = confusion_block(predictions, len(names), MAX_CONFUSION_CLASSES)
    routing = mean_routing(predictions, [item.shot for item in classes])
    return [
        accuracy_by_count(results.per_class, branches),
        accuracy_by_zero_shot(results.per_class),
        confusion([names[index] for index in class_K], share_KK, len(names)),
        training_curves(content.history, content.selected_epoch),
        *([routing_by_dimension(routing, DIMENSIONS)] if routing else []),
        hidden_prior(names, [item.train_images for item in classes], content.prior_C),
    ]


def _asset(name: str) -> str:
    return (resources.files("mdpr.evaluation") / "templates" / name).read_text(encoding="utf-8")
