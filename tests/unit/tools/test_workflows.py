"""Workflows and images: actions pinned by commit, base images by digest, no job may write more than it needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
WORKFLOWS = sorted((PROJECT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_the_default_permission_is_to_read(path: Path) -> None:
    text = path.read_text()
    used = re.findall(r"uses: (\S+)", text)
    assert [name for name in used if not re.search(r"@[0-9a-f]{40}$", name)] == []
    content = yaml.safe_load(text)
    assert content["permissions"] == {"contents": "read"}
    assert all("runs-on" in job and "steps" in job for job in content["jobs"].values())


@pytest.mark.parametrize("folder", ["components", "mlflow"])
def test_base_images_are_pinned_by_digest(folder: str) -> None:
    text = (PROJECT / folder / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.search(r"@sha256:[0-9a-f]{64}$", base)
    local = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)) | {"${BASE_IMAGE}"}
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= local


def test_make_targets_that_workflows_call_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    called = {name for path in WORKFLOWS for name in re.findall(r"run: make ([\w-]+)", path.read_text())}
    assert called <= targets
