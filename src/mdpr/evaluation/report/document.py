"""report.html: what it shows, read from the folders of the pipeline, and the page rendered.

Nothing is computed by a model here: the stage evaluate and `mdpr report` share this code, so that a page that is made
again shows the same. Class names and sentences are text to the template and to the charts (SVG text).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
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
from mdpr.evaluation.report.figure import Figure, write_figures
from mdpr.evaluation.report.gallery import GalleryItem, make_gallery, pick_tail_images, routing_pair
from mdpr.evaluation.report.text import (
    BIAS_TITLES,
    GROUP_TITLES,
    OTHER_FIGURES,
    bias_rows,
    diagnose,
    figure_cells,
    routing_lines,
    shown_branches,
    summary_sentence,
    variant_title,
)
from mdpr.evaluation.score_table import BASELINES, BRANCHES, points, signed_points, signed_span, span
from mdpr.evaluation.tables import Results, mean_routing
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
    """The results, and what the report shows beside them; `promotion` is None if the gate has not decided yet."""

    title: str
    results: Results
    history: pd.DataFrame
    selected_epoch: int
    prior_C: np.ndarray
    gallery: Sequence[GalleryItem]
    lineage: Mapping[str, str]
    audit: Sequence[AuditFinding]
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


def gather(folders: Folders, model_name: str, gallery_images: int, promotion: Promotion | None = None) -> ReportContent:
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
        title=f"{model_name}: evaluation on the test set",
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
    content = gather(folders, model_name, gallery_images)
    figures = make_figures(content)
    (folders.evaluation / "report.html").write_text(render_report(content, figures), encoding="utf-8")
    write_figures(folders.evaluation / "figures", figures)


def read_audit(knowledge: Path, features: Path) -> Sequence[AuditFinding]:
    """The findings of describe in the sentences and of encode in their features, errors first."""
    paths = (knowledge / "audit.json", features / "audit.json")
    findings = [finding for path in paths for finding in parse(path, Audit, artifacts.read_json(path)).findings]
    levels = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: levels.index(finding.level))


WORST_CONFUSIONS = 12
AUDIT_ROWS = 200


def render_report(content: ReportContent, figures: Sequence[Figure]) -> str:
    """The report as one HTML document; `figures` are those of `make_figures`."""
    results = content.results
    branches = shown_branches(results.scores)
    pair = routing_pair(content.gallery)
    return render_page(
        "mdpr.evaluation.report",
        "report.html.j2",
        "report.js",
        filters={
            "points": points,
            "signed_points": signed_points,
            "span": span,
            "signed_span": signed_span,
            "variant_title": variant_title,
        },
        title=content.title,
        content=content,
        results=results,
        scores=results.scores,
        intervals=results.intervals,
        summary=summary_sentence(results),
        diagnosis=diagnose(results),
        routing_lines=routing_lines(results),
        pair=pair,
        rest=content.gallery[len(pair) :],
        baselines=BASELINES,
        branches={branch: BRANCHES[branch] for branch in branches},
        group_titles={group: title for group, title in GROUP_TITLES.items() if group in results.scores["fused"]},
        other_figures=OTHER_FIGURES,
        figure_rows=[(BRANCHES[branch], figure_cells(results, branch)) for branch in branches],
        class_sizes={"all": len(results.classes), **Counter(item.shot for item in results.classes)},
        bias_titles=BIAS_TITLES,
        bias_rows=bias_rows(results.biases, branches),
        worst=worst_confusions(results.predictions, display_names(results.classes), WORST_CONFUSIONS),
        figures={figure.name: figure for figure in figures},
        dimensions=[label(key) for key in DIMENSIONS],
        audit_rows=AUDIT_ROWS,
    )


def make_figures(content: ReportContent) -> list[Figure]:
    """Every chart that the content allows; routing weights only if the model routes."""
    results = content.results
    names = display_names(results.classes)
    branches = shown_branches(results.scores)
    figures = [
        accuracy_by_count(results.per_class, [branch for branch in branches if branch != "routed"]),
        accuracy_by_zero_shot(results.per_class),
        hidden_prior(names, [item.train_images for item in results.classes], content.prior_C),
        reliability_diagram(results.reliability, branches, results.scores),
        confusion_figure(results, names),
        training_curves(content.history, content.selected_epoch),
    ]
    if routing := mean_routing(results.predictions, [item.shot for item in results.classes]):
        figures.append(routing_by_dimension(routing, DIMENSIONS))
    if not results.variants.empty:
        figures.append(variant_gains(results.variants))
    return figures
