"""`mdpr monitor`: exit codes, and a result that is on the disk before MLflow is spoken to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.monitoring.conftest import EVEN_C, SHIFTED_C, SOURCE, MakeAnswers

from mdpr.artifacts.prediction_log import REFERENCE_FILE, write_prediction_log
from mdpr.commands.monitor import monitor
from mdpr.errors import ConfigError, MdprError
from mdpr.monitoring.sample import Reference

WriteLog = Callable[..., None]


@pytest.fixture
def run(
    reference: Reference,
    answers: MakeAnswers,
    write_log: WriteLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """run(*options) -> the result of the command; the logs `same` and `shifted` are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    write_prediction_log(tmp_path / REFERENCE_FILE, SOURCE, reference.answers)
    write_log(tmp_path / "same" / "a.parquet", answers(EVEN_C, 1000, seed=1))
    write_log(tmp_path / "shifted" / "a.parquet", answers(SHIFTED_C, 1000, seed=2))

    def invoke(log: str, *options: str) -> Result:
        given = ["--log", log, "--reference", REFERENCE_FILE, "--output", "out", "--resamplings", "20", *options]
        return CliRunner().invoke(monitor, given)

    return invoke


def test_exit_codes_and_files(run: Callable[..., Result]) -> None:
    kept = run("same", "--no-mlflow")
    assert (kept.exit_code, Path("out/monitor.html").is_file()) == (0, True), kept.output
    advised = run("shifted", "--no-mlflow", "--json")  # replaces its own files
    assert advised.exit_code == 1
    content = json.loads(advised.output[advised.output.index("{") :])
    assert content == json.loads(Path("out/monitor.json").read_text())
    assert content["advice"] == "retrain"
    assert run("shifted", "--no-mlflow", "--max-label-shift", "1", "--max-drop-points", "100").exit_code == 0


@pytest.mark.parametrize(
    ("log", "options"),
    [("nowhere", []), ("same", ["--reference", "nowhere"]), ("same", ["--reference", "runs:/0123"])],
)
def test_bad_input_is_an_error_of_ours(run: Callable[..., Result], log: str, options: list[str]) -> None:
    result = run(log, "--no-mlflow", *options)
    assert isinstance(result.exception, MdprError)
    assert result.exception.exit_code == 2
    assert not Path("out").exists()


def test_somebodys_own_file_is_not_replaced(run: Callable[..., Result]) -> None:
    Path("out").mkdir()
    Path("out/monitor.json").write_text("mine")
    assert isinstance(run("same", "--no-mlflow").exception, ConfigError)
    assert Path("out/monitor.json").read_text() == "mine"


def test_a_store_that_is_not_there_costs_a_warning(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'nowhere' / 'mlflow.db'}")
    result = run("shifted")
    assert result.exit_code == 1, result.output
    assert Path("out/monitor.html").is_file()
