"""What the report gathers from the folders of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

from mdpr.artifacts import ClassKnowledge, Knowledge
from mdpr.config import DIMENSIONS
from mdpr.evaluation.contents import read_audit, who_wrote


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
    assert found is not None
    assert [item.message for item in found] == ["worst", "of the words", "nearer to a candle"]


def test_nobody_looked_is_not_nothing_found(tmp_path: Path) -> None:
    assert read_audit(tmp_path, tmp_path) is None
    assert read_audit(tmp_path, write(tmp_path / "features")) == []


def test_who_wrote_the_sentences_is_one_line_and_tells_the_completed_ones_apart() -> None:
    classes = tuple(
        ClassKnowledge(index=index, name=name, sentences=dict.fromkeys(DIMENSIONS, "x"), completed=completed)
        for index, (name, completed) in enumerate([("lamp", ()), ("candle", DIMENSIONS[-1:])])
    )
    hand = {"provider": "curated", "author": "somebody"}
    assert who_wrote(Knowledge(provenance=hand, classes=classes)) == "provider curated, author somebody"
    both = {"provider": "completed", "model": "m", "prompt_versions": {"functionality": 2}, "base": hand}
    assert who_wrote(Knowledge(provenance=both, classes=classes)) == (
        "1 of 10: provider completed, model m; the others: provider curated, author somebody"
    )
