"""The tune task of the pipeline as a cluster runs it: a process per GPU, here on the CPU; a pod that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mdpr.artifacts import sha256
from mdpr.kubeflow.components import run_component
from mdpr.params import Params
from mdpr.stages.stage import load_stage

pytestmark = pytest.mark.integration


@dataclass
class Artifact:
    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def task(
    encoded: Mapping[str, Path],
    small_params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[dict[str, Any], dict[str, Artifact]]:
    monkeypatch.setenv("MDPR_PROCESSES", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    stage = load_stage("tune")
    sections = small_params.dump(stage.sections.values())
    sections["tune"] |= {"epochs": 1, "context_tokens": 4, "prompt_depth": 2}
    sections["tracking"]["system_metrics"] = False
    ports = {port: Artifact(str(encoded[port])) for port in stage.inputs}
    return sections, {**ports, "model": Artifact(str(tmp_path / "model"))}


def test_two_processes_write_one_model_of_one_run(task: tuple[dict[str, Any], dict[str, Artifact]]) -> None:
    sections, ports = task
    run_component("tune", yaml.safe_dump(sections), **ports)
    assert (Path(ports["model"].path) / "model.safetensors").stat().st_size > 0
    assert ports["model"].metadata["run_id"]


def test_a_failure_in_one_of_them_fails_the_task(
    task: tuple[dict[str, Any], dict[str, Artifact]], capfd: pytest.CaptureFixture[str]
) -> None:
    sections, ports = task
    sections["backbone"]["weights"] = "no/such.safetensors"
    with pytest.raises(SystemExit) as ended:
        run_component("tune", yaml.safe_dump(sections), **ports)
    assert ended.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert any("no/such.safetensors" in line for line in errors)
    assert "one of 2 processes failed" in errors[-1]
    assert not Path(ports["model"].path).exists()


ATTEMPT = """
import json, sys
from mdpr.kubeflow.components import run_component
from tests.integration.test_pipeline_processes import Artifact
params, workspace, ports = json.loads(sys.stdin.read())
run_component("tune", params, workspace, **{port: Artifact(path) for port, path in ports.items()})
"""


def attempt(params: str, workspace: Path, ports: Mapping[str, Artifact]) -> subprocess.Popen[str]:
    """A pod's process: of an earlier one it sees the workspace volume, and nothing else."""
    process = subprocess.Popen(
        [sys.executable, "-c", ATTEMPT],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([params, str(workspace), {port: item.path for port, item in ports.items()}]))
    process.stdin.close()
    process.stdin = None
    return process


def test_a_pod_that_is_killed_goes_on_in_the_next_attempt_from_the_volume_of_the_run(
    task: tuple[dict[str, Any], dict[str, Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubeflow's driver runs once, so that all attempts have the same output; each has an empty folder for it."""
    monkeypatch.setenv("MDPR_PROCESSES", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]), prepend=os.pathsep)
    sections, ports = task
    sections["tune"] |= {"epochs": 3, "checkpoint_every_steps": 1}
    params, pod = yaml.safe_dump(sections), tmp_path / "minio"
    ports["model"] = Artifact(str(pod / "bucket" / "tune" / "model"))
    killed = attempt(params, tmp_path / "workspace", ports)
    until = time.monotonic() + 300
    while not (states := list((tmp_path / "workspace").glob("*/.model.checkpoint/state.safetensors"))):
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    shutil.rmtree(pod)

    again = attempt(params, tmp_path / "workspace", ports)
    log = again.communicate()[1]
    assert again.returncode == 0, log
    assert "resuming after step" in log
    assert not states[0].exists()
    ports["model"] = Artifact(str(tmp_path / "whole" / "model"))
    whole = attempt(params, tmp_path / "other", ports)  # a process of its own too: threads change the last digits
    log = whole.communicate()[1]
    assert whole.returncode == 0, log
    for name in ("model.safetensors", "history.csv"):
        assert sha256(pod / "bucket/tune/model" / name) == sha256(tmp_path / "whole/model" / name), name
