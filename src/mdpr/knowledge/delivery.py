"""The end of describe: what was gathered is audited, written down, and refused where it is unfit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mdpr.artifacts import ClassInfo, write_json
from mdpr.knowledge.audit import audit
from mdpr.knowledge.generated import Gathered, explain_gaps
from mdpr.knowledge.page import render_knowledge
from mdpr.knowledge.verdict import reject, report
from mdpr.params import DescribeParams

logger = logging.getLogger(__name__)


def deliver(
    gathered: Gathered, classes: Sequence[ClassInfo], rival_C: Sequence[int], folder: Path, params: DescribeParams
) -> None:
    """Write audit.json, index.html and, where no sentence is missing, knowledge.json into the new folder `folder`.

    rival_C: for each of all `classes` the index of the class it is most confused with. Raises `AnswersMissing` where
    a sentence is missing, `CheckFailed` for an error of the audit where `strict` is set.
    """
    rival_names = [classes[rival_C[item.index]].name for item in gathered.knowledge.classes]
    findings = explain_gaps(audit(gathered.knowledge, rival_names), gathered.missing)
    folder.mkdir()
    write_json(folder / "audit.json", {"findings": [asdict(finding) for finding in findings]})
    (folder / "index.html").write_text(render_knowledge(gathered.knowledge, findings), encoding="utf-8")
    if not any(finding.check == "missing" for finding in findings):
        write_json(folder / "knowledge.json", gathered.knowledge)
    for line in report(findings):
        logger.info(line)
    reject(findings, params)
