"""What the report gathers from the folders of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdpr.errors import ArtifactError
from mdpr.evaluation.report.document import read_audit


def finding(level: str, message: str) -> dict[str, str]:
    return {"level": level, "check": "any", "class_name": "lamp", "dimension": "functionality", "message": message}


def write(folder: Path, *findings: dict[str, str]) -> Path:
    folder.mkdir()
    (folder / "audit.json").write_text(json.dumps({"findings": findings, "margin_CV": [[0.1]]}), encoding="utf-8")
    return folder


def test_faults_of_the_sentences_and_of_their_features_stand_together_errors_first(tmp_path: Path) -> None:
    knowledge = write(tmp_path / "knowledge", finding("warning", "of the words"), finding("error", "worst"))
    features = write(tmp_path / "features", finding("warning", "nearer to a candle"))
    found = read_audit(knowledge, features)
    assert [item.message for item in found] == ["worst", "of the words", "nearer to a candle"]


def test_nobody_looked_is_not_nothing_found(tmp_path: Path) -> None:
    clean = write(tmp_path / "features")
    assert read_audit(clean, clean) == []
    with pytest.raises(ArtifactError, match=r"audit\.json is missing"):
        read_audit(tmp_path, clean)
