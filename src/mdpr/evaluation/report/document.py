"""report.html: what it shows, read from the folders of the pipeline, and the page rendered.

Nothing is computed by a model here: the stage evaluate and `mdpr report` share this code, so that a page that is made
again shows the same. Class names and sentences are text to the template and to the charts (SVG text).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from mdpr import artifacts
from mdpr.artifacts import Promotion, display_names, who_wrote
from mdpr.artifacts.formats import parse
from mdpr.artifacts.truth import read_truth
from mdpr.evaluation.report.charts import (
    accuracy_by_count,
    accuracy_by_zero_shot,
    hidden_prior,
    reliability_diagram,
    routing_by_dimension,
    training_curves,
    variant_gains,
)
from mdpr.evaluation.report.confusion import confusion_figure, worst_confusions
from mdpr.evaluation.report.figure import Figure, draw, write_figures
from mdpr.evaluation.report.gallery import GalleryItem, make_gallery, pick_tail_images, routing_pair
from mdpr.evaluation.report.text import (
    BIAS_TITLES,
    GROUP_TITLES,
    OTHER_FIGURES,
    auc_rows,
    bias_rows,
    class_sizes,
    diagnose,
    figure_cells,
    make_card,
    routing_lines,
    shown_branches,
    summary_sentence,
    variant_rows,
)
from mdpr.evaluation.score_table import BASELINES, BRANCHES, GROUPS, points
from mdpr.evaluation.tables import (
    Results,
    mean_routing,
)
from mdpr.images.decoding import decode_image
from mdpr.pages import label, render_page
from mdpr.params import DIMENSIONS


class AuditFinding(BaseModel):
    """A fault that the audit of the knowledge base found; what else an audit says is not shown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    level: Literal["error", "warning", "info"]
    check: str
    class_name: str
    dimension: str
    message: str


class Audit(BaseModel):
    """An audit.json, as far as the report shows it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    findings: tuple[AuditFinding, ...]


@dataclass(frozen=True)
class ReportContent:
    """The results, and what the report shows beside them.

    audit is None if the knowledge base was not audited, promotion if the gate has not decided yet.
    """

    title: str
    results: Results
    history: pd.DataFrame
    selected_epoch: int
    prior_C: np.ndarray
    gallery: Sequence[GalleryItem]
    lineage: Mapping[str, str]
    audit: Sequence[AuditFinding] | None = None
    promotion: Promotion | None = None


@dataclass(frozen=True)
class Folders:
    """Where the pipeline's artifacts lie."""

    prepared: Path
    probe: Path
    knowledge: Path
    features: Path
    model: Path
    evaluation: Path


def gather(folders: Folders, title: str, gallery_images: int, promotion: Promotion | None = None) -> ReportContent:
    """Read everything the report shows; raises `ArtifactError` that names the file that is missing or does not fit."""
    classes = artifacts.read_classes(folders.prepared)
    names = [item.name for item in classes]
    frozen = artifacts.read_probe(folders.probe, names)
    results = Results.read(folders.evaluation, classes)
    knowledge = artifacts.read_knowledge(folders.knowledge / "knowledge.json", names)
    picked = pick_tail_images(results.predictions, classes, gallery_images)
    test = artifacts.read_images(folders.prepared / "test.parquet")
    images = {row: decode_image(test.image(row), f"row {row} of test.parquet") for row in picked["index"].tolist()}
    return ReportContent(
        title=title,
        results=results,
        history=artifacts.read_history(folders.model),
        selected_epoch=artifacts.read_model_config(folders.model).selected_epoch,
        prior_C=np.exp(frozen.log_prior_C),
        gallery=make_gallery(picked, classes, knowledge.sentences_CV(), images, read_truth(folders.prepared)),
        lineage=artifacts.read_lineage(folders.evaluation) | {"sentences": who_wrote(knowledge)},
        audit=read_audit(folders.knowledge, folders.features),
        promotion=promotion,
    )


def write_report(folders: Folders, model_name: str, gallery_images: int) -> None:
    """Write report.html and figures/ into evaluation/; raises as `gather` does."""
    content = gather(folders, title_of(model_name), gallery_images)
    figures = make_figures(content)
    (folders.evaluation / "report.html").write_text(render_report(content, figures), encoding="utf-8")
    write_figures(folders.evaluation / "figures", figures)


def title_of(model_name: str) -> str:
    """The report's title."""
    return f"{model_name}: evaluation on the test set"


def read_audit(knowledge: Path, features: Path) -> Sequence[AuditFinding] | None:
    """The findings of describe in the sentences and of encode in their features, errors first; None if not audited."""
    paths = [path for folder in (knowledge, features) if (path := folder / "audit.json").is_file()]
    if not paths:
        return None
    findings = [finding for path in paths for finding in parse(path, Audit, artifacts.read_json(path)).findings]
    levels = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: levels.index(finding.level))


WORST_CONFUSIONS = 12
AUDIT_ROWS = 200


def render_report(content: ReportContent, figures: Sequence[Figure]) -> str:
    """The report as one HTML document; `figures` are those of `make_figures`."""
    results = content.results
    groups = [group for group in GROUPS if group in results.scores["fused"]]
    branches = shown_branches(results.scores)
    pair = routing_pair(content.gallery)
    return render_page(
        "mdpr.evaluation.report",
        "report.html.j2",
        "report.js",
        filters={"points": points},
        title=content.title,
        content=content,
        results=results,
        summary=summary_sentence(results),
        diagnosis=diagnose(results),
        routing_lines=routing_lines(results),
        auc_rows=auc_rows(results),
        pair=pair,
        rest=content.gallery[len(pair) :],
        cards=[make_card(results, group) for group in groups],
        branches={branch: BRANCHES[branch] for branch in branches},
        baseline_rows=[
            (name, [points(results.scores[key].get(group)) for group in groups])
            for key, name in BASELINES.items()
            if key in results.scores
        ],
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
    """Every chart that the content allows; routing weights only if the model routes."""
    results = content.results
    names = display_names(results.classes)
    shown = shown_branches(results.scores)
    branches = [branch for branch in shown if branch != "routed"]
    routing = mean_routing(results.predictions, [item.shot for item in results.classes])
    counts = [item.train_images for item in results.classes]
    charts = {
        ("accuracy_by_count", "Accuracy by training count"): lambda: accuracy_by_count(results.per_class, branches),
        ("accuracy_by_zero_shot", "Accuracy against the frozen model's own"): lambda: accuracy_by_zero_shot(
            results.per_class
        ),
        ("hidden_prior", "Two biases"): lambda: hidden_prior(names, counts, content.prior_C),
        ("reliability", "Reliability"): lambda: reliability_diagram(results.reliability, shown, results.scores),
        ("confusion", "Confusion"): lambda: confusion_figure(results, names),
        ("training", "Training"): lambda: training_curves(content.history, content.selected_epoch),
    }
    if routing:
        charts["routing", "Which knowledge was consulted"] = lambda: routing_by_dimension(routing, DIMENSIONS)
    if not results.variants.empty:
        charts["variants", "The same model, otherwise"] = lambda: variant_gains(results.variants)
    return [draw(name, title, chart) for (name, title), chart in charts.items()]
