"""Runs that a killed task of Kubeflow left open."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdpr.kubeflow.components import close_runs
from mdpr.mlops.store import Store, connect


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return connect()


def test_a_run_that_failed_closes_its_own_runs_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = store.client.create_experiment("e")

    def start(kfp_run: str) -> str:
        return str(store.client.create_run(experiment, tags={"kfp.run_id": kfp_run}).info.run_id)

    def status(run_id: str) -> str:
        return str(store.client.get_run(run_id).info.status)

    left_open, finished, of_another = start("k1"), start("k1"), start("k2")
    store.client.set_terminated(finished)
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    close_runs("FAILED")
    monkeypatch.setenv("KFP_RUN_ID", "k1")
    close_runs("SUCCEEDED")
    assert status(left_open) == "RUNNING"
    close_runs("FAILED")
    assert [status(run_id) for run_id in (left_open, finished, of_another)] == ["FAILED", "FINISHED", "RUNNING"]
