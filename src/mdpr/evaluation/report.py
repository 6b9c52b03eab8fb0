"""report.html: the results of an evaluation as one page.

Class names and sentences are text to the template and to the charts (SVG text).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from mdpr.config import DIMENSIONS
from mdpr.evaluation.charts.accuracy import accuracy_by_count, accuracy_by_zero_shot
from mdpr.evaluation.charts.calibration import reliability_diagram
from mdpr.evaluation.charts.confusion import labelled, whole
from mdpr.evaluation.charts.knowledge import hidden_prior, routing_by_dimension
from mdpr.evaluation.charts.svg import Figure
from mdpr.evaluation.charts.training import training_curves
from mdpr.evaluation.charts.variants import variant_gains
from mdpr.evaluation.contents import ReportContent
from mdpr.evaluation.metrics import GROUPS, points
from mdpr.evaluation.predictions import BRANCHES
from mdpr.evaluation.results import Results
from mdpr.evaluation.tables import confusion_block, confusion_density, display_names, mean_routing, worst_confusions
from mdpr.evaluation.wording import (
    BIAS_TITLES,
    GROUP_TITLES,
    OTHER_FIGURES,
    bias_rows,
    class_sizes,
    figure_cells,
    make_card,
    shown_branches,
    summary_sentence,
    variant_rows,
)
from mdpr.pages import label, render_page

MAX_LABELLED_CLASSES = 20
WORST_BLOCK_CLASSES = 5  # of a matrix that is labelled whole
DENSITY_CELLS = 250
WORST_CONFUSIONS = 12
AUDIT_ROWS = 200


def render_report(content: ReportContent, figures: Sequence[Figure]) -> str:
    """The report as one HTML document; `figures` are those of `make_figures`."""
    results = content.results
    groups = [group for group in GROUPS if group in results.scores["fused"]]
    branches = shown_branches(results.scores)
    return render_page(
        "mdpr.evaluation",
        "report.html.j2",
        "report.js",
        filters={"points": points},
        title=content.title,
        content=content,
        results=results,
        summary=summary_sentence(results),
        cards=[make_card(results, group) for group in groups],
        branches={branch: BRANCHES[branch] for branch in branches},
        group_titles={group: GROUP_TITLES[group] for group in groups},
        other_figures=OTHER_FIGURES,
        figure_rows=[(BRANCHES[branch], figure_cells(results, branch)) for branch in branches],
        class_sizes=class_sizes(results.classes),
        bias_titles=BIAS_TITLES,
        bias_rows=bias_rows(results.biases, branches),
        variant_rows=variant_rows(results.variants, groups),
        worst=worst_confusions(results.predictions, display_names(results.classes), WORST_CONFUSIONS),
        figures={figure.name: figure for figure in figures},
        dimensions=[label(key) for key in DIMENSIONS],
        audit_rows=AUDIT_ROWS,
        svg=lambda figure: Markup(figure.svg),  # noqa: S704 - Vega escapes the text in it
    )


def make_figures(content: ReportContent) -> list[Figure]:
    """Every chart that the content allows; routing weights only where there was routing."""
    results = content.results
    names = display_names(results.classes)
    shown = shown_branches(results.scores)
    branches = [branch for branch in shown if branch != "routed"]
    routing = mean_routing(results.predictions, [item.shot for item in results.classes])
    return [
        accuracy_by_count(results.per_class, branches),
        accuracy_by_zero_shot(results.per_class),
        hidden_prior(names, [item.train_images for item in results.classes], content.prior_C),
        reliability_diagram(results.reliability, shown, results.scores),
        confusion_figure(results, names),
        *([routing_by_dimension(routing, DIMENSIONS)] if routing else []),
        *([] if results.variants.empty else [variant_gains(results.variants)]),
        training_curves(content.history, content.selected_epoch),
    ]


def confusion_figure(results: Results, names: Sequence[str]) -> Figure:
    """The whole matrix, with names where they have room, and a closer look at the block of the worst confusions."""
    classes = len(names)
    everything = classes <= MAX_LABELLED_CLASSES
    most = WORST_BLOCK_CLASSES if everything else MAX_LABELLED_CLASSES
    if everything:
        _, share_CC = confusion_block(results.predictions, classes, classes)
        matrix = labelled(names, share_CC, "Confusion", "confusion")
        if classes <= most:
            return matrix
    class_K, share_KK = confusion_block(results.predictions, classes, most)
    scope = f" Shown are the {len(class_K)} classes of the worst confusions, of {classes:,}."
    closer = labelled([names[index] for index in class_K], share_KK, "Worst block", "confusion_zoom", scope)
    if everything:
        return replace(matrix, zoom=closer)
    order_C = np.argsort([-item.train_images for item in results.classes], kind="stable")
    return whole(confusion_density(results.predictions, order_C, DENSITY_CELLS), classes, closer)
