"""The TrainJob's command on two nodes: two launchers on loopback, told who they are as Kubeflow Trainer tells them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from pipelines.cluster import ClusterProfile
from pipelines.trainjob import PARAMS_FILE, PARAMS_PATH, WORK_PATH, Request, render

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


def start(command: list[str], folder: Path, rank: int, nodes: int, processes: int, port: int) -> subprocess.Popen[str]:
    """The launcher of a node, with the variables that the Trainer's torch plugin sets."""
    told = {
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


def test_two_nodes_learn_what_two_processes_of_one_node_learn(command: list[str], tmp_path: Path, port: int) -> None:
    model = tmp_path / "run" / "model"
    nodes = [start(command, tmp_path, rank, NODES, 1, port) for rank in range(NODES)]
    said = finish(nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum("tune done in" in text for text in said) == 1  # one process of all speaks
    apart = sha256(model / "model.safetensors"), read_history(model)
    assert list(tmp_path.glob("run/.model*")) == []

    model.rename(tmp_path / "first")
    (one,) = nodes = [start(command, tmp_path, 0, 1, NODES, port)]
    said = finish(nodes)
    assert one.returncode == 0, said
    assert sha256(model / "model.safetensors") == apart[0]
    numbers = [column for column in apart[1].columns if column.startswith("val_")]
    assert numbers
    assert read_history(model)[numbers].equals(apart[1][numbers])


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
