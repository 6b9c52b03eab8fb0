"""What a run of the pipelines `knowledge` and `sweep` must have written, wherever its tasks ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdpr.artifacts import read_model_config, sha256
from mdpr.params import load_params
from mdpr.stages.stage import load_stage, run_stage

PROJECT = Path(__file__).resolve().parents[2]
LOOP = "for-loop-2-iteration-"


def check_shards_merged(run: Path, shards: int, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merged knowledge base is what one `describe` writes, byte by byte."""
    tasks = {"configure", "prepare", "validate", "require", "probe", "shard", "merge", "require-3", "close"}
    assert {path.name for path in run.iterdir()} == tasks | {f"{LOOP}{place}" for place in range(shards)}
    monkeypatch.chdir(PROJECT)  # the curated sentences have a relative path
    whole = scratch / "whole"
    paths = {"prepared": run / "prepare" / "prepared", "probe": run / "probe" / "probe", "knowledge": whole}
    run_stage(load_stage("describe"), paths, load_params(PROJECT / "params.yaml"))
    for name in ("knowledge.json", "audit.json", "index.html"):
        assert (run / "merge" / "knowledge" / name).read_bytes() == (whole / name).read_bytes()


def check_best_went_on(run: Path, settings: int) -> None:
    """Of the models of the loop the best on validation was scored and registered, in its own MLflow run."""
    models = [run / f"{LOOP}{place}" / "tune" / "model" for place in range(settings)]
    scores = [read_model_config(model).val_accuracy["fused"] for model in models]
    best = models[scores.index(max(scores))]
    assert sha256(run / "select" / "model") == sha256(best)
    chosen = json.loads((best / "run.json").read_text("utf-8"))["run_id"]
    evaluation = json.loads((run / "evaluate" / "evaluation" / "run.json").read_text("utf-8"))
    assert evaluation["run_id"] == chosen
    assert json.loads((run / "register" / "registration").read_text("utf-8"))["run_id"] == chosen
    table = (run / "select" / "choice").read_text("utf-8")
    assert table.count("yes") == 1
    assert f"{100 * max(scores):.2f} | yes" in table
