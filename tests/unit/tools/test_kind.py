"""The script of `make test-cluster` needs kind and the network; this checks what can be checked without either."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from pipelines.cluster import read_profile
from pipelines.compile import compile_pipeline

from mdpr.params import load_params

PROJECT = Path(__file__).resolve().parents[3]
SCRIPT = PROJECT / "tests/kind/run.sh"
TOOLS = ("docker", "kind", "kubectl", "git")


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.parametrize("missing", TOOLS)
def test_a_tool_that_is_missing_is_named_in_one_line(tmp_path: Path, missing: str) -> None:
    for tool in TOOLS:
        if tool != missing:
            (tmp_path / tool).symlink_to("/bin/true")
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    ended = subprocess.run(["/bin/bash", SCRIPT], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {missing} is not installed\n"


def test_its_profile_compiles_to_images_that_it_loads(tmp_path: Path) -> None:
    compile_pipeline(tmp_path / "pipeline.yaml", read_profile(SCRIPT.with_name("cluster.yaml")))
    graph = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8")))
    used = {item["container"]["image"] for item in graph["deploymentSpec"]["executors"].values()}
    (loaded,) = re.findall(r"^kind load docker-image .*", SCRIPT.read_text("utf-8"), re.MULTILINE)
    assert used <= set(loaded.split())


def test_its_settings_are_those_of_params_yaml() -> None:
    settings = re.findall(r"--set (\S+)", SCRIPT.read_text("utf-8"))
    assert len(settings) >= 5
    load_params(PROJECT / "params.yaml", settings)


def test_the_secrets_that_it_fills_in_are_those_of_the_server() -> None:
    example = (PROJECT / "mlflow/kubernetes/secrets.env.example").read_text("utf-8")
    exported = set(
        re.findall(r"(\w+)=", " ".join(re.findall(r"^export (.*)$", SCRIPT.read_text("utf-8"), re.MULTILINE)))
    )
    assert {line.partition("=")[0] for line in example.split()} <= exported
