"""`mdpr summary`: what `make demo` ends with."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from mdpr.artifacts import Intervals, Promotion, RoutingCheck
from mdpr.cli import cli
from mdpr.commands.results import Summary, read_summary, render_summary
from mdpr.errors import ArtifactError
from mdpr.evaluation.tables import VARIANT_COLUMNS
from mdpr.params import TrackingParams

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


def intervals(**gain_of_fused: dict[str, tuple[float, float]]) -> Intervals:
    return Intervals(method="paired", level=0.95, resamplings=2000, seed=0, accuracy={}, gain_of_fused=gain_of_fused)


def variants(**changes: float) -> pd.DataFrame:
    """variants.csv with the row of the sentences of other classes, if it has figures."""
    row = {"variant": "shuffled_sentences", "kind": "ablation", "all": 0.301, "many": 0.302, "few": 0.303} | changes
    return pd.DataFrame([row] if changes else [], columns=VARIANT_COLUMNS)


def summary_of(path: Path, **changes: object) -> Summary:
    found = {
        "scores": SCORES,
        "intervals": intervals(zero_shot={"all": (0.01, 0.034)}, base={"all": (0.05, 0.06)}),
        "variants": variants(),
        "routing": RoutingCheck(faithfulness={}, oracle={}, deletion=None, deletion_interval=None),
        "promotion": promotion(),
        "champion": "3",
        "report": path / "report.html",
    }
    return Summary(**(found | changes))  # type: ignore[arg-type]


def text_of(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render_summary(summary))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rows_columns_and_facts(tmp_path: Path) -> None:
    text = text_of(summary_of(tmp_path))
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("│")]
    assert [row.split("│")[1].split()[0].lower() for row in rows] == ["zero-shot", "base", "routed", "fused"]
    assert [cell.strip() for cell in rows[-1].split("│")[2:-1]] == ["83.2", "86.0", "91.9"]
    assert "medium" not in text
    assert "champion: version 3 of mdpr (MLflow registry)" in lines
    assert "gate: version 3 promoted: good enough against zero-shot" in lines
    assert str(tmp_path / "report.html") in text.replace("\n", "")


def test_gains_over_the_frozen_model_and_its_own_base_with_intervals(tmp_path: Path) -> None:
    lines = text_of(summary_of(tmp_path)).splitlines()
    assert "Gain over the frozen model: +2.2 points (95 % interval +1.0 to +3.4)." in lines
    assert "Gain over its own base: +5.4 points (95 % interval +5.0 to +6.0)." in lines


def test_what_the_sentences_are_worth(tmp_path: Path) -> None:
    assert "other classes" not in text_of(summary_of(tmp_path))
    count = summary_of(tmp_path, variants=variants(gain=-0.531, gain_low=-0.55, gain_high=-0.51))
    rows = [line for line in text_of(count).splitlines() if line.startswith("│")]
    assert "sentences of other classes" in rows[-1]
    assert [cell.strip() for cell in rows[-1].split("│")[2:-1]] == ["30.1", "30.2", "30.3"]
    assert "The sentences count" in text_of(count)
    nothing = summary_of(tmp_path, variants=variants(gain=-0.001, gain_low=-0.004, gain_high=0.002))
    assert "The sentences change nothing here" in text_of(nothing)


def test_how_faithful_routing_is_where_it_is_known(tmp_path: Path) -> None:
    assert "AUC" not in text_of(summary_of(tmp_path))
    known = RoutingCheck(faithfulness={"a": 0.9, "b": 0.8}, oracle={}, deletion=None, deletion_interval=None)
    assert "AUC of 0.85" in " ".join(text_of(summary_of(tmp_path, routing=known)).split())


def test_without_routing_and_without_champion(tmp_path: Path) -> None:
    scores = {branch: figures for branch, figures in SCORES.items() if branch != "routed"}
    text = text_of(summary_of(tmp_path, scores=scores, promotion=promotion(decision="kept"), champion=None))
    assert "routed" not in text.lower()
    assert "own base" not in text
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
