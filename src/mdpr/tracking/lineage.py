"""Where a run comes from, as MLflow tags, and nested settings as flat names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mdpr.config import read_yaml


def lineage_tags(inputs: Sequence[Path] = ()) -> dict[str, str]:
    """mdpr's version, the git commit, the md5 of each of `inputs` in dvc.lock, the run of Kubeflow Pipelines.

    A tag that has no source here (no git, not inside DVC, not inside Kubeflow) is left out. Changes that are
    not committed set `mdpr.git.dirty`; dvc.lock does not count, for DVC rewrites it while stages run.
    """
    from mdpr import __version__

    tags = {"mdpr.version": __version__, **_git_tags(Path.cwd())}
    if root := os.environ.get("DVC_ROOT"):
        tags |= _dvc_tags(Path(root), inputs)
    if run_id := os.environ.get("KFP_RUN_ID"):
        tags["kfp.run_id"] = run_id
    return tags


def flatten(tree: Mapping[str, Any] | BaseModel, parent: str = "") -> dict[str, Any]:
    """Nested mappings and pydantic models on one level: {"tune": {"loss": {"tau": 1}}} -> "tune.loss.tau"."""
    flat: dict[str, Any] = {}
    for key, value in (tree.model_dump() if isinstance(tree, BaseModel) else tree).items():
        name = f"{parent}.{key}" if parent else str(key)
        flat.update(flatten(value, name) if isinstance(value, Mapping | BaseModel) else {name: value})
    return flat


def _git_tags(folder: Path) -> dict[str, str]:
    try:
        import git
    except ImportError:  # GitPython refuses to load without the git program
        return {}
    try:
        with git.Repo(folder, search_parent_directories=True) as repository:
            commit = repository.head.commit.hexsha
            changes = repository.git.status("--porcelain", "--untracked-files=no", "--", ":(exclude,glob)**/dvc.lock")
    except (
        git.GitError,
        ValueError,
    ):  # not a repository, one that git does not trust, or one without a commit
        return {}
    return {"mlflow.source.git.commit": commit, "mdpr.git.dirty": str(bool(changes)).lower()}


def _dvc_tags(root: Path, inputs: Sequence[Path]) -> dict[str, str]:
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    stages = read_yaml(lock).get("stages", {}).values()
    outs = {(root / out["path"]).resolve(): out for stage in stages for out in stage.get("outs", ())}
    found = (outs.get(path.resolve()) for path in inputs)
    return {f"dvc.md5.{out['path']}": out["md5"] for out in found if out}
