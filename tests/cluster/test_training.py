"""The training pipeline as a cluster runs it, on own images of a claim, up to the registry of a real MLflow server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.life import Pictures
from benchmarks.llm_stub import Stub, running, usual
from mlflow import MlflowClient
from pipelines.cluster import ClusterProfile
from pipelines.compile import compile_pipeline
from tests.cluster.conftest import NewCluster
from tests.cluster.engine import WORKSPACE, Cluster, Run

from mdpr.kubeflow.components import lay_over
from mdpr.stages.stage import STAGES

pytestmark = pytest.mark.integration
KILLS = int(os.environ.get("MDPR_KILLS", "1"))  # pods of tune that are lost, one after another
CLASSES = {"ankle boot": 30, "shirt": 20, "bag": 12}
SECRET_KEY = "sk-0123456789-of-nobody"  # noqa: S105
OVERRIDES: dict[str, Any] = {
    "prepare": {"source": "folder", "root": "/data/images", "profile": "natural", "val_images_per_class": 3},
    "describe": {"provider": "llm", "strict": False, "llm": {"model": "stub", "concurrency": 1}},
    "tune": {
        "epochs": 2 + KILLS,
        "context_tokens": 4,
        "prompt_depth": 2,
        "checkpoint_every_steps": 1,
        "augment": "none",
    },
    "evaluate": {"gallery_images": 2},
    "tracking": {"system_metrics": False},
}


@dataclass
class Trained:
    """The run, in which `tune` was killed once, and the cluster it ran on."""

    cluster: Cluster
    run: Run
    store: str
    chat: Stub

    def files(self, task: str, port: str) -> dict[str, bytes]:
        """What a task uploaded for a port: path below it -> content."""
        found = {}
        for key in self.cluster.keys(self.run.root):
            if match := re.search(rf"/{task}/[0-9a-f]+/{port}(?:/(.*))?$", key):
                content = self.cluster.client.get_object(Bucket=self.cluster.bucket, Key=key)["Body"]
                found[match[1] or ""] = content.read()
        return found


@pytest.fixture(scope="module")
def claim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own images of uneven classes."""
    folder = tmp_path_factory.mktemp("claim")
    Pictures().write(folder / "images", CLASSES)
    return folder


@pytest.fixture(scope="module")
def trained(
    new_cluster: NewCluster, claim: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    cluster = new_cluster("minio")
    cluster.claims["images"] = claim
    folder = tmp_path_factory.mktemp("run")
    profile = ClusterProfile(data_claim="images", tasks={"tune": {"retries": max(2, KILLS)}})
    compile_pipeline(folder / "training.yaml", profile)
    command = ("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "{port}", "--workers", "1")
    server = start_server([*command, "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"], "/health")
    with server as mlflow, running(usual(0.1)) as chat:
        cluster.secrets |= {"mdpr-mlflow": {"MLFLOW_TRACKING_URI": mlflow.address}}
        cluster.secrets |= {"mdpr-llm": {"OPENAI_API_KEY": SECRET_KEY}}
        cluster.started = lambda *attempt: kill(*attempt, chat)
        overrides = {**OVERRIDES, "describe": lay_over(OVERRIDES["describe"], {"llm": {"base_url": chat.url}})}
        run = cluster.run(folder / "training.yaml", overrides=yaml.safe_dump(overrides))
        yield Trained(cluster, run, mlflow.address, chat)


def kill(task: str, attempt: int, process: subprocess.Popen[bytes], workspace: Path, chat: Stub) -> None:
    """The node goes once `describe` has some of its answers, and whenever `tune` has written a checkpoint."""

    def checkpoints() -> list[int]:
        return [file.stat().st_mtime_ns for file in workspace.glob("*/*/state.safetensors")]

    name, before = task.rpartition("/")[2], checkpoints()
    kills, ready = {
        "describe": (1, lambda: chat.calls > 6),
        "tune": (KILLS, lambda: checkpoints() != before),
    }.get(name, (0, lambda: False))
    while attempt < kills and process.poll() is None:
        if ready():
            os.killpg(process.pid, signal.SIGKILL)
            return
        time.sleep(0.01)


def test_the_run_succeeds_in_pods_without_rights_on_an_object_store(trained: Trained) -> None:
    assert trained.run.succeeded, [(name, task.state, task.log[-2000:]) for name, task in trained.run.tasks.items()]
    assert {task.state for task in trained.run.tasks.values()} == {"COMPLETE"}


def test_a_killed_tune_goes_on_in_its_next_pod_in_the_same_mlflow_run(trained: Trained) -> None:
    *lost, last = trained.run.tasks["exit-handler-1/tune"].attempts
    assert [attempt.ended.killed for attempt in lost] == [True] * KILLS
    assert all("resuming after step" in attempt.ended.log for attempt in (*lost[1:], last))
    client = MlflowClient(trained.store)
    (experiment,) = (item for item in client.search_experiments() if item.name == "mdpr")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [item.step for item in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(2 + KILLS))
    assert run.data.tags["kfp.run_id"] == trained.run.id


def test_a_killed_describe_pays_for_no_answer_twice(trained: Trained) -> None:
    first, second = trained.run.tasks["exit-handler-1/describe"].attempts
    assert first.ended.killed
    assert second.ended.code == 0
    assert trained.chat.calls <= 15 + 1  # the question that was under way had no answer yet


def test_describe_downloads_the_class_list_and_not_the_images(trained: Trained) -> None:
    copied = trained.run.tasks["exit-handler-1/describe"].attempts[0].downloaded_bytes
    probe = sum(map(len, trained.files("probe", "probe").values()))
    assert copied <= probe + len(trained.files("prepare", "prepared")["classes.json"])


def test_no_secret_is_in_an_artifact_or_a_log(trained: Trained) -> None:
    client, bucket = trained.cluster.client, trained.cluster.bucket
    for key in trained.cluster.keys(trained.run.root):
        content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert SECRET_KEY.encode() not in content, key


def test_every_output_is_in_the_store_and_a_version_in_the_registry(trained: Trained) -> None:
    for task, port, file in (
        ("prepare", "prepared", "card.json"),
        ("validate", "validation", "index.html"),
        ("describe", "knowledge", "knowledge.json"),
        ("tune", "model", "model.safetensors"),
        ("evaluate", "evaluation", "report.html"),
    ):
        assert file in trained.files(task, port)
    registered = json.loads(trained.files("register", "registration")[""])
    assert MlflowClient(trained.store).get_model_version("mdpr", registered["version"]).status == "READY"
    assert json.loads(trained.files("promote", "promotion")[""])["version"] == registered["version"]


def test_the_exit_handler_is_told_that_the_run_is_complete(trained: Trained) -> None:
    assert '"state": "COMPLETE"' in trained.run.tasks["close"].log


def test_tasks_get_the_claim_and_the_workspace_only_where_they_need_them(trained: Trained) -> None:
    mounts = {name.rpartition("/")[2]: task.attempts[0].mounts for name, task in trained.run.tasks.items()}
    assert {name for name, paths in mounts.items() if "/data" in paths} == set(STAGES)
    kept = {"describe", "tune", "evaluate", "register", "promote", "close"}
    assert {name for name, paths in mounts.items() if WORKSPACE in paths} == kept


def test_the_workspace_goes_with_a_run_that_succeeded(trained: Trained) -> None:
    assert not trained.run.workspace.exists()


def test_what_a_failed_check_found_is_in_the_store_and_pictures_out_of_a_store_need_no_claim(
    new_cluster: NewCluster, claim: Path, s3: str, tmp_path: Path
) -> None:
    cluster = new_cluster()
    for file in (claim / "images").rglob("*.*"):
        cluster.client.upload_file(str(file), cluster.bucket, f"sets/{file.relative_to(claim / 'images')}")
    cluster.secrets["mdpr-mlflow"] = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    cluster.secrets["mdpr-data"] = {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word"}
    compile_pipeline(tmp_path / "training.yaml", ClusterProfile())
    root = f"s3://{cluster.bucket}/sets"
    overrides = lay_over(OVERRIDES, {"validate": {"min_side_px": 64}, "prepare": {"root": root}})
    run = cluster.run(tmp_path / "training.yaml", overrides=yaml.safe_dump(overrides))
    states = {name.rpartition("/")[2]: task.state for name, task in run.tasks.items()}
    assert not run.succeeded
    assert (states["prepare"], states["validate"], states["require"]) == ("COMPLETE", "COMPLETE", "FAILED")
    assert "probe" not in states
    failed = Trained(cluster, run, "", Stub(usual(0.0)))
    assert json.loads(failed.files("prepare", "prepared")["card.json"])["origin"]["address"] == root
    assert b"64" in failed.files("validate", "validation")["index.html"]
    assert failed.files("validate", "docs")
    last = run.tasks["exit-handler-1/require"].log.strip().splitlines()[-1]
    assert last.startswith("error: validate: ")
    assert "the task validate" in last
    assert '"state": "FAILED"' in run.tasks["close"].log
