"""The task that starts and follows a TrainJob, against a server that plays the Kubernetes API, by the real client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines.cluster import ClusterProfile
from pipelines.compile import compile_pipeline
from pipelines.nodes import train_job
from tests.contract.cluster_profile import PROFILE
from tests.contract.kfp_server import DROP, serving
from tests.contract.kube_server import RUN_ID, WORKFLOW, Kubernetes

from mdpr.kubeflow import train_jobs
from mdpr.kubeflow.tasks import close_runs
from mdpr.kubeflow.train_jobs import run_on_nodes

SHARED = {"workspace_access": "ReadWriteMany"}
OVER_TWO = ClusterProfile.model_validate(PROFILE | {"tasks": {"tune": {"nodes": 2, "gpus": 4, "retries": 5}}})
Controller = Callable[[Kubernetes, dict[str, Any]], object]


@dataclass
class Port:
    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Task:
    """The task of one run: its volume, its ports, the cluster it runs on."""

    kubernetes: Kubernetes
    workspace: Path
    ports: dict[str, Port]

    def attempt(self) -> None:
        job = yaml.safe_dump(train_job("", 2, ClusterProfile()))
        run_on_nodes("tune", "", str(self.workspace), job, **self.ports)

    def fails(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
        """Exit code and the lines of the log of an attempt that fails."""
        with pytest.raises(SystemExit) as ended:
            self.attempt()
        return int(ended.value.code or 0), capsys.readouterr().err.strip().splitlines()

    def is_lost(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        """Lose an attempt while its TrainJob goes on; returns the TrainJob."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_jobs, "LOST_POLLS", 0)
            code, lines = self.fails(capsys)
        assert (code, "does not answer" in lines[-1]) == (2, True)
        self.kubernetes.refuse = []
        (job,) = self.kubernetes.jobs.values()
        return job

    @property
    def model(self) -> Path:
        return Path(self.ports["model"].path)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Controller], Task]]:
    monkeypatch.setattr(train_jobs, "POLL_S", 0.01)
    workspace = tmp_path / "kfp-workspace"
    workspace.mkdir()
    ports = {name: Port(str(tmp_path / "s3" / name)) for name in ("prepared", "probe", "features", "model")}
    Path(ports["prepared"].path).mkdir(parents=True)
    (Path(ports["prepared"].path) / "card.json").write_text("{}")
    for name in ("probe", "features"):
        Path(ports[name].path).write_text(name)
    with ExitStack() as servers:

        def make(controller: Controller) -> Task:
            kubernetes = servers.enter_context(serving(Kubernetes(workspace, controller)))
            for name, value in kubernetes.environment(tmp_path).items():
                monkeypatch.setenv(name, value)
            return Task(kubernetes, workspace, ports)

        yield make


def given(job: dict[str, Any]) -> dict[str, Path]:
    """The paths that the nodes get: option -> path."""
    arguments = job["spec"]["trainer"]["args"][3:]
    return {name.removeprefix("--"): Path(path) for name, path in zip(arguments[::2], arguments[1::2], strict=True)}


def is_seen(kubernetes: Kubernetes) -> None:
    """Wait until the task has begun to list the pods twice from now, so that one list shows them as they are."""
    polls, deadline = kubernetes.counts["list pods"] + 2, time.monotonic() + 30
    while kubernetes.counts["list pods"] < polls and time.monotonic() < deadline:
        time.sleep(0.005)


def trains(kubernetes: Kubernetes, job: dict[str, Any], is_followed: bool = True) -> None:
    """Two nodes that wait for their image, run, and leave a model on the volume."""
    name, paths = job["metadata"]["name"], given(job)
    assert (paths["prepared"] / "card.json").read_text() == "{}"
    assert (paths["probe"].read_text(), paths["features"].read_text()) == ("probe", "features")
    for phase, waits in (("Pending", "ImagePullBackOff"), ("Running", ""), ("Succeeded", "")):
        for node in range(2):
            kubernetes.pod(name, node, phase, waits, f"epoch 1 of node {node}\n")
        if is_followed:
            is_seen(kubernetes)
    paths["model"].mkdir()
    (paths["model"] / "run.json").write_text('{"run_id": "m1"}')
    kubernetes.ends(name, "Complete")


def breaks(kubernetes: Kubernetes, job: dict[str, Any]) -> None:
    """One node fails with a line of its own, the other because of it; torchrun's report comes last."""
    name = job["metadata"]["name"]
    kubernetes.pod(name, 0, "Failed", log="error: tune: lost the others\n======\n")
    kubernetes.pod(name, 1, "Failed", log="epoch 1\nerror: tune ran out of memory\n======\n")
    kubernetes.ends(name, "Failed", "JobsFailed", "jobset failed due to one or more job failures")


def goes_on(kubernetes: Kubernetes, job: dict[str, Any]) -> None:
    """The nodes run, and the network of the task does not."""
    for node in range(2):
        kubernetes.pod(job["metadata"]["name"], node, "Running")
    kubernetes.refuse = [DROP] * 99  # urllib3 repeats a request by itself


def test_the_model_of_the_nodes_is_the_output_of_the_task(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    task = start(trains)
    with caplog.at_level("INFO", logger="mdpr"):
        task.attempt()
    assert (task.model / "run.json").is_file()
    assert task.ports["model"].metadata["run_id"] == "m1"
    (job,) = task.kubernetes.jobs.values()
    owner = {key: value for key, value in WORKFLOW.items() if key != "controller"}
    assert job["metadata"]["ownerReferences"] == [owner]  # it outlives the pod, and goes with the run
    assert {"name": "KFP_RUN_ID", "value": RUN_ID} in job["spec"]["trainer"]["env"]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    claims = {item["name"]: item["persistentVolumeClaim"] for item in pod["volumes"] if "persistentVolumeClaim" in item}
    mounts = {item["mountPath"]: item["name"] for item in pod["containers"][0]["volumeMounts"]}
    assert claims[mounts[str(task.workspace)]] == {"claimName": "run-1-kfp-workspace"}
    assert "node 0 Pending (ImagePullBackOff)" in caplog.text
    assert "node 1 Running" in caplog.text
    assert "epoch 1 of node 0" in capsys.readouterr().err


def test_a_second_attempt_follows_the_job_that_runs(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str]
) -> None:
    task = start(goes_on)
    job = task.is_lost(capsys)
    trains(task.kubernetes, job, is_followed=False)
    task.attempt()
    assert task.kubernetes.counts["create trainjobs"] == 1
    assert (task.model / "run.json").is_file()


def test_an_attempt_after_the_model_is_there_needs_no_cluster(start: Callable[[Controller], Task]) -> None:
    task = start(trains)
    task.attempt()
    asked = task.kubernetes.counts.total()
    task.ports["model"] = Port(task.ports["model"].path)
    task.attempt()
    assert task.kubernetes.counts.total() == asked
    assert task.ports["model"].metadata["run_id"] == "m1"


def test_a_failure_names_the_reason_and_the_last_line_of_each_pod(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = start(breaks).fails(capsys)
    assert code == 2
    assert lines[-1].startswith("error: TrainJob tune-")
    for part in ("(JobsFailed): jobset failed", "node 0: error: tune: lost", "node 1: error: tune ran out"):
        assert part in lines[-1]
    assert "epoch 1" in lines


def test_an_attempt_after_a_failure_starts_the_job_anew(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str]
) -> None:
    task = start(breaks)
    task.fails(capsys)
    task.kubernetes.controller = trains
    task.attempt()
    assert (task.kubernetes.counts["create trainjobs"], task.kubernetes.counts["delete trainjobs"]) == (2, 1)
    assert (task.model / "run.json").is_file()


def test_a_pod_whose_log_is_gone_is_said(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(kubernetes: Kubernetes, job: dict[str, Any]) -> None:
        kubernetes.pod(job["metadata"]["name"], 0, "Failed")
        kubernetes.ends(job["metadata"]["name"], "Failed", "DeadlineExceeded", "exceeded its active deadline")

    _, lines = start(lost).fails(capsys)
    assert "DeadlineExceeded" in lines[-1]
    assert "log cannot be read" in lines[-1]


def test_an_api_in_trouble_is_asked_again(start: Callable[[Controller], Task]) -> None:
    def trouble(kubernetes: Kubernetes, job: dict[str, Any]) -> None:
        kubernetes.refuse = [500, DROP, 503, 429]
        trains(kubernetes, job)

    task = start(trouble)
    task.attempt()
    assert task.kubernetes.refuse == []
    assert (task.model / "run.json").is_file()


@pytest.mark.parametrize(("status", "hint"), [(401, "401"), (403, "components/trainjob/role.yaml"), (422, "not now")])
def test_a_refusal_is_one_line(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str], status: int, hint: str
) -> None:
    task = start(goes_on)
    task.kubernetes.refuse = [status]
    code, (*_, line) = task.fails(capsys)
    assert code == 2
    assert hint in line


def test_a_cluster_without_kubeflow_trainer_is_named(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(train_jobs.RESOURCE, "plural", "unknown")
    task = start(goes_on)
    task.kubernetes.rules[0]["resources"].append("unknown")
    monkeypatch.setattr(task.kubernetes, "_jobs", lambda *request: (404, {"message": "could not find the resource"}))
    code, (*_, line) = task.fails(capsys)
    assert (code, "install Kubeflow Trainer" in line) == (2, True)


def test_outside_a_cluster_it_says_so(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = start(goes_on)
    monkeypatch.delenv("KUBECONFIG")
    code, (*_, line) = task.fails(capsys)
    assert (code, "no Kubernetes API" in line) == (2, True)


def test_a_job_that_is_deleted_by_hand_ends_the_task(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = start(lambda kubernetes, job: kubernetes.jobs.pop(job["metadata"]["name"])).fails(capsys)
    assert (code, "was deleted while it ran" in lines[-1]) == (2, True)


def test_a_volume_that_the_nodes_do_not_share_is_said(
    start: Callable[[Controller], Task], capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = start(lambda kubernetes, job: kubernetes.ends(job["metadata"]["name"], "Complete")).fails(capsys)
    assert (code, "ReadWriteMany" in lines[-1]) == (2, True)


def test_the_last_task_stops_a_job_that_goes_on_and_keeps_one_that_ended(
    start: Callable[[Controller], Task],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = start(goes_on)
    job = task.is_lost(capsys)
    monkeypatch.delenv("KFP_RUN_ID")  # no MLflow
    close_runs("FAILED", str(task.workspace))
    assert "deletionTimestamp" in job["metadata"]
    del job["metadata"]["deletionTimestamp"]
    task.kubernetes.ends(job["metadata"]["name"], "Failed")
    close_runs("FAILED", str(task.workspace))
    assert "deletionTimestamp" not in job["metadata"]
    task.kubernetes.refuse = [403]
    close_runs("FAILED", str(task.workspace))
    assert "may go on" in caplog.text


@pytest.mark.parametrize("variant", ["training", "retraining", "sweep"])
def test_a_profile_with_nodes_puts_it_in_the_place_of_tune(tmp_path: Path, variant: str) -> None:
    compile_pipeline(tmp_path / "pipeline.yaml", OVER_TWO, variant)
    graph, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8"))
    executors, options = graph["deploymentSpec"]["executors"], platform["platforms"]["kubernetes"]["deploymentSpec"]
    assert "exec-tune" not in executors
    container, pod = executors["exec-trainjob"]["container"], options["executors"]["exec-trainjob"]
    assert container["image"] == PROFILE["image_cpu"]
    assert "accelerator" not in container["resources"]
    fields = {item["name"]: item["fieldPath"] for item in pod["fieldPathAsEnv"]}
    assert fields["KFP_NAMESPACE"] == "metadata.namespace"
    assert {"name": "KFP_NAMESPACE", "fieldPath": "metadata.namespace"} in options["executors"]["exec-close"][
        "fieldPathAsEnv"
    ]
    dags = [item["dag"]["tasks"] for item in graph["components"].values() if "dag" in item]
    (task,) = (tasks["trainjob"] for tasks in dags if "trainjob" in tasks)
    job = yaml.safe_load(task["inputs"]["parameters"]["job"]["runtimeValue"]["constant"])
    assert (job["spec"]["trainer"]["numNodes"], job["spec"]["trainer"]["numProcPerNode"]) == (2, 4)
    # It may wait for nodes as long as any task, and then as long as they may train.
    assert int(pod["activeDeadlineSeconds"]) == job["spec"]["activeDeadlineSeconds"] + 24 * 3600
    assert task["retryPolicy"]["maxRetryCount"] == 5
