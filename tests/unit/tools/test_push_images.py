"""`make push`: tags, and the lines of a cluster's profile. A script stands in the place of docker."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from pipelines.cluster import ClusterProfile

REGISTRY = "registry.example.org/team"
DOCKER = """#!/bin/bash
echo "$*" >> calls
if [ "$1" = inspect ]; then
  name=${@: -1}
  echo "elsewhere.example.org/other@sha256:0"
  echo "${name%:*}@sha256:$(printf %064d 7)"
fi
"""


@pytest.fixture
def project(tmp_path: Path, project_root: Path) -> Path:
    """A repository with the script and the version, committed, and a docker that writes down its calls."""
    for name in ("tools/push_images.sh", "src/mdpr/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project_root / name, tmp_path / name)
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    login = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (("init", "--quiet"), ("add", "--all"), (*login, "commit", "--quiet", "-m", "start")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def push(project: Path, registry: str) -> subprocess.CompletedProcess[str]:
    command = ["tools/push_images.sh", "./docker", registry]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


@pytest.mark.parametrize("registry", [REGISTRY, f"{REGISTRY}/"])
def test_what_is_printed_is_a_profile_by_tag_and_digest(project: Path, registry: str) -> None:
    done = push(project, registry)
    assert done.returncode == 0, done.stderr
    profile = ClusterProfile.model_validate(yaml.safe_load(done.stdout))
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True).stdout[:12]
    assert profile.image_cpu.startswith(f"{REGISTRY}/mdpr-cpu:")
    assert profile.image_gpu.endswith(f"-{revision}@sha256:{7:064d}")
    calls = (project / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["tag", "push", "inspect"] * 2


def test_no_registry_and_changes_that_are_not_committed_are_refused(project: Path) -> None:
    done = push(project, "")
    assert (done.returncode, "REGISTRY=" in done.stderr) == (2, True)
    (project / "src/mdpr/__init__.py").write_text("")
    done = push(project, REGISTRY)
    assert (done.returncode, "commit" in done.stderr) == (2, True)
    assert not (project / "calls").exists()
