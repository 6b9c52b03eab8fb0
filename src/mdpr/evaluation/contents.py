"""What the report shows, gathered from the folders of the pipeline: nothing is computed by a model here.

The stage evaluate and `mdpr report` both come this way, so that a page made again shows the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from mdpr import artifacts
from mdpr.artifacts import Promotion, who_wrote
from mdpr.artifacts.formats import parse
from mdpr.data.images import decode_image
from mdpr.evaluation.gallery import GalleryItem, make_gallery, pick_tail_images
from mdpr.evaluation.results import Results


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
    """What the report shows beside the results: where they come from, and what they look like.

    audit is None where the knowledge base was not audited, promotion where the gate has not decided yet.
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
        gallery=make_gallery(picked, classes, knowledge.sentences_CV(), images),
        lineage=artifacts.read_json(folders.evaluation / "lineage.json") | {"sentences": who_wrote(knowledge)},
        audit=read_audit(folders.knowledge, folders.features),
        promotion=promotion,
    )


def read_audit(knowledge: Path, features: Path) -> Sequence[AuditFinding] | None:
    """What describe found in the sentences and encode in their features, errors first; None where neither looked."""
    paths = [path for folder in (knowledge, features) if (path := folder / "audit.json").is_file()]
    if not paths:
        return None
    findings = [finding for path in paths for finding in parse(path, Audit, artifacts.read_json(path)).findings]
    levels = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: levels.index(finding.level))
