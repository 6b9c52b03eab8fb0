"""The tune task of the pipeline in two real processes: what a node with two GPUs does, here on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

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
