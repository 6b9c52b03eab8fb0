"""Kubeflow's own MLflow plugin (KEP-12862): its variables are the connection, and our run is nested in its run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from pipelines.cluster import MLFLOW_LOGIN_SECRET, MLFLOW_SECRET, ClusterProfile
from pipelines.compile import compile_pipeline
from tests.cluster.engine import Cluster, Refused
from tests.cluster.test_engine import write

pytestmark = pytest.mark.integration
FIELDS = [{"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}]
# What `tune` does with its run, without the training.
PROGRAM = """
from mdpr.mlops.runs import lineage_tags, open_run
from mdpr.params import TrackingParams
with open_run(TrackingParams(system_metrics=False), "ours", {"seed": 0}, lineage_tags()) as run:
    run.log_epoch({"loss": 0.5}, 0)
answer()"""


@dataclass
class Plugin:
    """v2/common/plugins/mlflow: a run per pipeline run, one per task below it, and the variables of injectUserEnvVars.

    The API server makes the first, the driver the second.
    """

    address: str
    parents: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)

    def __call__(self, run: str, task: str) -> dict[str, str]:
        client = MlflowClient(self.address)
        found = client.get_experiment_by_name("Default")
        assert found is not None
        if run not in self.parents:
            self.parents[run] = client.create_run(found.experiment_id, run_name=run).info.run_id
        tags = {"mlflow.parentRunId": self.parents[run]}
        self.tasks[task] = client.create_run(found.experiment_id, run_name=task, tags=tags).info.run_id
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_RUN_ID": self.tasks[task],
            "MLFLOW_EXPERIMENT_ID": found.experiment_id,
        }


@pytest.fixture(scope="module")
def mlflow(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    command = ("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "{port}", "--workers", "1")
    with start_server([*command, "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"], "/health") as server:
        yield server.address


def test_our_run_is_nested_in_the_run_of_its_task(cluster: Cluster, mlflow: str, tmp_path: Path) -> None:
    cluster.plugin = plugin = Plugin(mlflow)
    run = cluster.run(write(tmp_path, {"tune": {"fieldPathAsEnv": FIELDS}}, tune=(PROGRAM, ())))
    assert run.succeeded, run.tasks["tune"].log
    client = MlflowClient(mlflow)
    (ours,) = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{plugin.tasks['tune']}'")
    assert (ours.info.run_name, ours.info.status) == ("ours", "FINISHED")
    assert ours.data.tags["kfp.run_id"] == run.id
    assert ours.data.metrics == {"train/loss": 0.5}
    assert client.get_run(plugin.tasks["tune"]).info.status == "RUNNING"  # the launcher ends it


def test_an_address_from_the_plugin_and_from_a_secret_is_an_invalid_pod(
    cluster: Cluster, mlflow: str, tmp_path: Path
) -> None:
    cluster.plugin = Plugin(mlflow)
    cluster.secrets[MLFLOW_SECRET] = {"MLFLOW_TRACKING_URI": mlflow}
    keys = {
        "secretName": MLFLOW_SECRET,
        "keyToEnv": [{"envVar": key, "secretKey": key} for key in ("MLFLOW_TRACKING_URI",)],
    }
    with pytest.raises(Refused, match="MLFLOW_TRACKING_URI has a value and a secret"):
        cluster.run(write(tmp_path, {"tune": {"secretAsEnv": [keys]}}, tune=("answer()", ())))


def test_a_profile_with_the_plugin_sets_no_variable_of_it(tmp_path: Path) -> None:
    compile_pipeline(tmp_path / "training.yaml", ClusterProfile(mlflow="plugin"))
    text = (tmp_path / "training.yaml").read_text("utf-8")
    assert "MLFLOW_TRACKING" not in text
    assert f"secretName: {MLFLOW_SECRET}\n" not in text
    assert f"secretName: {MLFLOW_LOGIN_SECRET}\n" in text  # keys of a store of artifacts that the server does not proxy
