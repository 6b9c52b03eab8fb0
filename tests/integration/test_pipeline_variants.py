"""The pipelines `knowledge`, `sweep` and `retraining`, tasks in processes: loops, merging, the choice, a condition."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.variant_checks import LOOP, PROJECT, check_best_went_on, check_shards_merged

from mdpr.artifacts import read_model_config
from mdpr.stages.stage import STAGES

SMALL = ("prepare.max_images_per_class=30", "prepare.imbalance_ratio=5", "prepare.val_images_per_class=5")
TEST = ("prepare.test_from=share", "prepare.test_share=0.05")  # 60 images per class
TUNING = ("tune.epochs=1", "tune.context_tokens=4", "tune.prompt_depth=1", "tracking.system_metrics=false")
QUICK = ("evaluate.ablations=false", "evaluate.post_hoc=false", "evaluate.gallery_images=1")
TIMEOUT_S = 600
pytestmark = pytest.mark.integration


def run_pipeline(workdir: Path, variant: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`mdpr pipeline run` in a folder of its own, so that nothing is written into the project."""
    for name in ("data", "mlflow", "pipelines", "components", "params.yaml"):
        (workdir / name).symlink_to(PROJECT / name)
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{workdir}/mlflow.db", "OMP_NUM_THREADS": "1"}
    settings = [part for item in (*SMALL, *TEST, *TUNING, *QUICK) for part in ("--set", item)]
    command = [sys.executable, "-m", "mdpr", "pipeline", "run", "--variant", variant, "--output", str(workdir / "runs")]
    return subprocess.run(
        [*command, *settings, *options], cwd=workdir, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def folder_of(workdir: Path, result: subprocess.CompletedProcess[str]) -> Path:
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    (folder,) = (workdir / "runs").iterdir()
    return folder


def test_shards_run_and_merge_to_what_one_describe_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_pipeline(tmp_path, "knowledge", "--parameter", "shards=3")
    run = folder_of(tmp_path, result)
    assert f"knowledge: {run / 'merge' / 'knowledge' / 'knowledge.json'}" in result.stdout
    check_shards_merged(run, 3, tmp_path, monkeypatch)


def test_the_best_on_validation_is_scored_and_registered(tmp_path: Path) -> None:
    settings = "settings=[{tune: {seed: 1}}, {tune: {seed: 2, learning_rate: 1.0e-7}}]"
    run = folder_of(tmp_path, run_pipeline(tmp_path, "sweep", "--parameter", settings))
    looped = {f"{LOOP}{place}" for place in range(2)}
    assert {path.name for path in run.iterdir()} == {
        "configure",
        "require",
        "require-2",
        *STAGES,
        "vary",
        "select",
        "close",
    } - {"tune"} | looped

    seeds = [read_model_config(run / f"{LOOP}{place}" / "tune" / "model").tune.seed for place in range(2)]
    assert seeds == [1, 2]
    check_best_went_on(run, 2)
    summary = (run / "evaluate" / "summary").read_text("utf-8")
    assert "(final answer)** |" in summary
    assert summary.rstrip().endswith("There is no champion yet.")


def test_without_a_champion_retraining_trains_the_first(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    run = folder_of(tmp_path, run_pipeline(tmp_path, "retraining", "--parameter", f"log={tmp_path / 'log'}"))
    tasks = {"configure", "monitor", "require", "require-2", "close"}
    assert {path.name for path in run.iterdir()} == tasks | set(STAGES)
    assert json.loads((run / "monitor" / "monitoring").read_text("utf-8"))["advice"] == "retrain"
    assert json.loads((run / "promote" / "promotion").read_text("utf-8"))["model_name"] == "mdpr"


def test_a_setting_that_fails_ends_the_sweep_before_anything_is_scored(tmp_path: Path) -> None:
    result = run_pipeline(
        tmp_path, "sweep", "--parameter", "settings=[tune: {precision: fp16}]", "--set", "backbone.device=cpu"
    )
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert result.returncode == 1
    assert sum(line.startswith("error: ") and "fp16" in line for line in lines) == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert {"select", "evaluate", "register"}.isdisjoint(path.name for path in run.iterdir())
    assert "'tune'" in result.stderr.splitlines()[-1]
