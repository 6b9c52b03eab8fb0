"""The recipe emblems-lt from prepare to evaluate, at a small size; and training that never sees the truth."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from mdpr.artifacts import read_metrics, sha256
from mdpr.artifacts.truth import read_truth
from mdpr.params import Params, parse_params
from mdpr.recipes import params_text, read_recipe
from mdpr.stages.stage import load_stage, run_stage

pytestmark = pytest.mark.integration

SMALL = ["prepare.max_images_per_class=12", "prepare.imbalance_ratio=4", "prepare.val_images_per_class=2"]
STAGES = ("prepare", "validate", "probe", "describe", "encode", "tune", "evaluate")


@pytest.fixture(scope="module")
def params(project_root: Path) -> Params:
    quick = ["tune.epochs=1", "evaluate.gallery_images=4", "tracking.system_metrics=false"]
    return parse_params(yaml.safe_load(params_text(read_recipe("emblems-lt"), "foreign", [*SMALL, *quick])))


@pytest.fixture(scope="module")
def data(project_root: Path, params: Params, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The recipe's data/, port -> path, evaluated."""
    folder = tmp_path_factory.mktemp("emblems")
    paths = {port: folder / "data" / port for stage in STAGES for port in load_stage(stage).ports}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project_root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        for stage in STAGES:
            run_stage(load_stage(stage), paths, params)
    return paths


def test_the_whole_chain_runs_and_answers_better_than_chance(data: Mapping[str, Path]) -> None:
    scores = read_metrics(data["evaluation"])
    assert {"zero_shot", "base", "routed", "fused"} <= scores.keys()
    assert scores["zero_shot"]["all"] > 10 / 80
    assert scores["fused"]["all"] > 10 / 80


def test_training_without_the_truth_gives_the_same_model(
    data: Mapping[str, Path],
    params: Params,
    project_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project_root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert read_truth(data["prepared"]) is not None
    blind = shutil.copytree(data["prepared"], tmp_path / "prepared", ignore=shutil.ignore_patterns("truth.*"))
    assert read_truth(blind) is None
    paths = {**data, "prepared": blind, "model": tmp_path / "model"}
    run_stage(load_stage("tune"), paths, params)
    assert sha256(paths["model"] / "model.safetensors") == sha256(data["model"] / "model.safetensors")
