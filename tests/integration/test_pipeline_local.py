"""The whole Kubeflow pipeline on the embedded data, tasks in processes, up to a champion in a real store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mdpr.stages.definition import STAGES

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "prepare.max_images_per_class": 300,
    "prepare.val_images_per_class": 20,
    "tune.epochs": 3,
    "tune.context_tokens": 4,
    "tune.base_loss": "logit_adjusted",  # so short a training with plain cross entropy does not pass the gate
    "tracking.model_name": "pipeline-test",
}
TIMEOUT_S = 600
pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, one folder a task in it, and the address of the MLflow store it used."""

    folder: Path
    store: str

    def executor_output(self, task: str) -> dict:
        return json.loads((self.folder / task / "executor_output.json").read_text("utf-8"))

    def metadata(self, task: str, artifact: str) -> dict:
        return self.executor_output(task)["artifacts"][artifact]["artifacts"][0]["metadata"]


def run_pipeline(workdir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`mdpr pipeline run` in a folder of its own, so that nothing is written into the project."""
    for name in ("data", "mlflow", "pipelines", "components", "params.yaml"):
        (workdir / name).symlink_to(PROJECT / name)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{workdir}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mdpr", "pipeline", "run", "--output", str(workdir / "runs"), *options]
    return subprocess.run(command, cwd=workdir, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    workdir = tmp_path_factory.mktemp("pipeline")
    options = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    result = run_pipeline(workdir, *options)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    (folder,) = (workdir / "runs").glob("mdpr-training-*")
    return Run(folder, f"sqlite:///{workdir}/mlflow.db")


def test_every_task_ran_once(run: Run) -> None:
    assert {path.name for path in run.folder.iterdir()} == {"configure", *STAGES, "close"}


def test_overrides_reached_the_stages(run: Run) -> None:
    classes = json.loads((run.folder / "prepare" / "prepared" / "classes.json").read_text("utf-8"))["classes"]
    assert max(item["train_images"] for item in classes) == SETTINGS["prepare.max_images_per_class"]
    config = json.loads((run.folder / "tune" / "model" / "config.json").read_text("utf-8"))
    assert config["tune"]["epochs"] == SETTINGS["tune.epochs"]


def test_the_ui_gets_numbers_a_confusion_matrix_and_a_report(run: Run) -> None:
    metrics = run.metadata("evaluate", "metrics")
    assert metrics
    assert all(isinstance(value, int | float) for value in metrics.values())
    matrix = run.metadata("evaluate", "confusion")["confusionMatrix"]
    total = sum(sum(row["row"]) for row in matrix["rows"])
    assert (len(matrix["annotationSpecs"]), total) == (10, 10_000)
    assert (run.folder / "evaluate" / "report").read_text("utf-8").lstrip().lower().startswith("<!doctype html")


def test_artifacts_carry_the_mlflow_run(run: Run) -> None:
    tuned = run.metadata("tune", "model")["run_id"]
    assert run.metadata("evaluate", "evaluation")["run_id"] == tuned


def test_ends_with_a_champion_in_the_registry(run: Run) -> None:
    from mlflow import MlflowClient

    champion = MlflowClient(run.store).get_model_version_by_alias("pipeline-test", "champion")
    assert str(run.metadata("register", "registration")["version"]) == str(champion.version)


def test_a_wrong_setting_is_one_line_before_anything_runs(tmp_path: Path) -> None:
    result = run_pipeline(tmp_path, "--set", "tune.epoch=1")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: tune.epoch is not a setting")
    assert not (tmp_path / "runs").exists()


def test_a_mistake_inside_a_task_is_one_line_and_fails_the_run(tmp_path: Path) -> None:
    result = run_pipeline(tmp_path, "--set", "prepare.root=no/such/folder")
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert result.returncode == 1
    assert sum(line.startswith("error: ") and "no/such/folder" in line for line in lines) == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert "'prepare'" in result.stderr.splitlines()[-1]
