"""A TrainJob on two nodes: two launchers on loopback that get the variables of Kubeflow Trainer.

Once started by the task of a pipeline, through a server that plays the Kubernetes API, and once by its own manifest.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines.cluster import ClusterProfile
from pipelines.nodes import train_job
from pipelines.trainjob import PARAMS_FILE, PARAMS_PATH, WORK_PATH, Request, render
from tests.contract.kfp_server import serving
from tests.contract.kube_server import Kubernetes

from mdpr.artifacts import read_history, sha256
from mdpr.params import Params
from mdpr.stages.stage import load_stage

pytestmark = pytest.mark.integration
TIMEOUT_S = 240
NODES = 2


@pytest.fixture
def command(encoded: Mapping[str, Path], small_params: Params, tmp_path: Path) -> list[str]:
    """What the manifest lets each node run, on this machine's files; `tmp_path` is the volume that the nodes share."""
    stage = load_stage("tune")
    sections = small_params.dump(stage.sections.values())
    sections["tune"] |= {"epochs": 1, "context_tokens": 4, "prompt_depth": 2}
    sections["tracking"]["system_metrics"] = False
    request = Request(name="job", nodes=NODES, pvc="work", folder="run")
    config, job = render(request, yaml.safe_dump(sections), ClusterProfile(gpus=0))
    (tmp_path / PARAMS_FILE).write_text(config["data"][PARAMS_FILE], "utf-8")
    (tmp_path / "run").mkdir()
    for port in stage.inputs:
        (tmp_path / "run" / port).symlink_to(encoded[port])
    trainer = job["spec"]["trainer"]
    assert trainer["command"][0] == "python"
    paths = {str(PARAMS_PATH): str(tmp_path), str(WORK_PATH): str(tmp_path)}
    arguments = trainer["args"]
    for here, there in paths.items():
        arguments = [f"{there}{item.removeprefix(here)}" if item.startswith(f"{here}/") else item for item in arguments]
    return [sys.executable, *trainer["command"][1:], *arguments]


def start(
    command: list[str], folder: Path, rank: int, nodes: int, processes: int, port: int, **given: str
) -> subprocess.Popen[str]:
    """The launcher of a node, with the variables that the Trainer's torch plugin sets, and those `given`."""
    told = given | {
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(processes),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ | told, **pipes)  # type: ignore[call-overload,no-any-return]


def finish(nodes: list[subprocess.Popen[str]]) -> list[str]:
    """What the nodes said, when all of them have ended."""
    try:
        return [node.communicate(timeout=TIMEOUT_S)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()


FOLLOW = """
import sys, types, yaml
from mdpr.kubeflow import train_jobs
train_jobs.POLL_S = 0.1
job, params, workspace, *ports = sys.argv[1:]
given = {name: types.SimpleNamespace(path=path, metadata={}) for name, path in (port.split("=") for port in ports)}
train_jobs.run_on_nodes("tune", params, workspace, job, **given)
print(given["model"].metadata["mdpr.data_digest"])
"""


def test_the_task_of_a_pipeline_learns_on_two_nodes_what_two_processes_of_one_node_learn(
    command: list[str], encoded: Mapping[str, Path], tmp_path: Path, port: int
) -> None:
    """The task is killed while the nodes train, and its next attempt hands their model on."""
    workspace, output = tmp_path / "kfp-workspace", tmp_path / "s3" / "model"
    workspace.mkdir()
    output.parent.mkdir()
    said: list[str] = []

    def controller(kubernetes: Kubernetes, job: dict[str, Any]) -> None:
        trainer, name = job["spec"]["trainer"], job["metadata"]["name"]
        program = [sys.executable, *trainer["command"][1:], *trainer["args"]]
        given = {item["name"]: item["value"] for item in trainer["env"] if "value" in item}
        nodes = [start(program, tmp_path, rank, NODES, 1, port, **given) for rank in range(NODES)]
        for rank in range(NODES):
            kubernetes.pod(name, rank, "Running")
        said.extend(finish(nodes))
        failed = any(node.returncode for node in nodes)
        for rank, node in enumerate(nodes):
            kubernetes.pod(name, rank, "Failed" if node.returncode else "Succeeded", log=said[rank])
        kubernetes.ends(name, "Failed" if failed else "Complete")

    job = yaml.safe_dump(train_job("", NODES, ClusterProfile(gpus=0)))
    ports = [f"{name}={encoded[name]}" for name in load_stage("tune").inputs]
    params = (tmp_path / PARAMS_FILE).read_text("utf-8")
    task = [sys.executable, "-c", FOLLOW, job, params, str(workspace), *ports, f"model={output}"]
    with serving(Kubernetes(workspace, controller)) as kubernetes:
        environment = os.environ | kubernetes.environment(tmp_path)
        lost = subprocess.Popen(task, env=environment, stderr=subprocess.DEVNULL)
        while lost.poll() is None and not kubernetes.counts["list pods"]:
            time.sleep(0.05)
        lost.kill()
        lost.wait()
        ended = subprocess.run(task, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 0, (ended.stderr, said)
    assert "following it" in ended.stderr
    assert "tune done in" in ended.stderr  # the log of the first node
    assert kubernetes.counts["create trainjobs"] == 1
    assert sum("tune done in" in text for text in said) == 1  # one process of all speaks
    assert list(output.parent.glob(".*")) == []

    (one,) = nodes = [start(command, tmp_path, 0, 1, NODES, port)]
    said = finish(nodes)
    assert one.returncode == 0, said
    model = tmp_path / "run" / "model"
    assert sha256(model / "model.safetensors") == sha256(output / "model.safetensors")
    apart, together = read_history(output), read_history(model)
    numbers = [column for column in apart.columns if column.startswith("val_")]
    assert numbers
    assert together[numbers].equals(apart[numbers])


def test_a_node_whose_images_are_damaged_takes_the_other_with_it(command: list[str], tmp_path: Path, port: int) -> None:
    """The nodes have met when it is found: the one says what is wrong, the other does not wait for it."""
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "run" / "prepared", damaged)
    (damaged / "val.parquet").write_bytes(b"PAR1 and nothing else")
    given = command.index("--prepared") + 1
    broken = [*command[:given], str(damaged), *command[given + 1 :]]
    nodes = [start(command, tmp_path, 0, NODES, 1, port), start(broken, tmp_path, 1, NODES, 1, port)]
    said = finish(nodes)
    assert all(node.returncode for node in nodes), said
    assert "damaged/val.parquet" in said[1]
    assert "lost the others" in said[0]
    assert not (tmp_path / "run" / "model").exists()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
