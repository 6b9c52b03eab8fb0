"""`mdpr summary`: what `make demo` ends with."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mdpr.artifacts import Promotion
from mdpr.cli import cli
from mdpr.errors import ArtifactError
from mdpr.params import TrackingParams
from mdpr.summary import Summary, read_summary, render

SCORES = {
    "zero_shot": {"all": 0.81, "many": 0.8, "few": 0.9, "ece": 0.01},
    "base": {"all": 0.778, "many": 0.85, "few": 0.748, "ece": 0.02},
    "routed": {"all": 0.8, "many": 0.8, "few": 0.8, "ece": 0.02},
    "fused": {"all": 0.832, "many": 0.86, "few": 0.919, "ece": 0.02},
}


def promotion(**changes: object) -> Promotion:
    values = {
        "decision": "promoted",
        "reason": "good enough against zero-shot",
        "model_name": "mdpr",
        "version": "3",
        "champion_before": None,
        "champion_after": "3",
        "checks": (),
    }
    return Promotion.model_validate(values | changes)


def text_of(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render(summary))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rows_columns_and_facts(tmp_path: Path) -> None:
    text = text_of(Summary(SCORES, promotion(), "3", tmp_path / "report.html"))
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("│")]
    assert [row.split("│")[1].split()[0].lower() for row in rows] == ["zero-shot", "base", "routed", "fused"]
    assert [cell.strip() for cell in rows[-1].split("│")[2:-1]] == ["83.2", "86.0", "91.9"]
    assert "medium" not in text
    assert "champion: version 3 of mdpr (MLflow registry)" in lines
    assert "gate: version 3 promoted: good enough against zero-shot" in lines
    assert str(tmp_path / "report.html") in text.replace("\n", "")


def test_without_routing_and_without_champion(tmp_path: Path) -> None:
    scores = {branch: figures for branch, figures in SCORES.items() if branch != "routed"}
    text = text_of(Summary(scores, promotion(decision="kept"), None, tmp_path / "report.html"))
    assert "routed" not in text.lower()
    assert "champion: none" in text
    assert "not promoted" in text


def test_a_flow_that_has_not_run_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"metrics\.json is missing: run `dvc repro` first"):
        read_summary(tmp_path / "evaluation", tmp_path / "promotion.json", TrackingParams())
    (tmp_path / "params.yaml").write_text("tracking:\n  model_name: mdpr\n")
    arguments = ["--evaluation", str(tmp_path), "--params", str(tmp_path / "params.yaml")]
    result = CliRunner().invoke(cli, ["summary", *arguments])
    assert isinstance(result.exception, ArtifactError)
    assert result.exception.exit_code == 2
