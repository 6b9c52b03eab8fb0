"""The origin of a run: settings, data, the state of Git and DVC, as MLflow's parameters, datasets and tags."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mdpr.artifacts import Split, read_card
from mdpr.launch import DVC_ROOT, experiment_name
from mdpr.mlops.publishing import DatasetInput
from mdpr.params import PrepareParams, TuneParams, read_yaml

CONTEXTS: dict[Split, str] = {"train": "training", "val": "validation", "test": "testing"}
DIGEST_LENGTH = 36  # characters that MLflow keeps; the whole sha256 is in the profile
BEFORE_TUNE = ("prepare", "validate", "probe", "describe", "encode")


def split_inputs(prepared: Path, splits: Sequence[Split]) -> list[DatasetInput]:
    """The splits of a prepared data set as MLflow's datasets, for `open_run` and `add_results`.

    The images stay where they are. Raises `ArtifactError` if card.json is missing.
    """
    card, inputs = read_card(prepared), []
    for split in splits:
        path = prepared / f"{split}.parquet"
        digest = card.sha256[path.name]
        profile = {"images": card.images[split], "classes": len(card.images_per_class[split]), "sha256": digest}
        inputs.append(
            DatasetInput(
                name=f"{card.source}-{split}",
                digest=digest[:DIGEST_LENGTH],
                source_type="local",
                source=json.dumps({"uri": str(path.absolute())}),
                profile=json.dumps(profile),
                context=CONTEXTS[split],
            )
        )
    return inputs


def run_name(tune: TuneParams) -> str:
    """DVC's name of the experiment, or else the settings in which runs usually differ."""
    answer = "with routing" if tune.routing else "without routing"
    return experiment_name() or f"{tune.prompting} {answer}, {tune.base_loss}, {tune.epochs} epochs, seed {tune.seed}"


def describe_data(prepared: Path) -> str:
    """A sentence for people about the data of a run."""
    card = read_card(prepared)
    counts = card.images_per_class["train"]
    return (
        f"{sum(counts)} training images of {len(counts)} classes ({card.source}), {min(counts)} to {max(counts)} a "
        f"class; {card.images['val']} validation and {card.images['test']} test images."
    )


def settings_before(prepared: Path) -> dict[str, Any]:
    """The settings of the stages before `tune`, flat: of all that ran inside DVC, of `prepare` elsewhere."""
    lock = _dvc_lock()
    if "prepare" not in lock:
        card = read_card(prepared).model_dump()
        return flatten({"prepare": {key: card[key] for key in PrepareParams.model_fields if key in card}})
    used = [lock.get(stage, {}).get("params", {}).get("params.yaml", {}) for stage in BEFORE_TUNE]
    return flatten({name: section for sections in used for name, section in sections.items()})


def lineage_tags(inputs: Sequence[Path] = ()) -> dict[str, str]:
    """mdpr's version, the git commit, the md5 of each of `inputs` in dvc.lock, DVC's experiment, the run
    of Kubeflow Pipelines.

    A tag that has no source here (no git, not inside DVC, not inside Kubeflow) is left out. Changes that are
    not committed set `mdpr.git.dirty`; dvc.lock does not count, for DVC rewrites it while stages run.
    """
    from mdpr import __version__

    tags = {"mdpr.version": __version__, **_git_tags(Path.cwd())}
    outs = {Path(out["path"]).resolve(): out for stage in _dvc_lock().values() for out in stage.get("outs", ())}
    found = (outs.get(path.resolve()) for path in inputs)
    tags |= {f"dvc.md5.{out['path']}": out["md5"] for out in found if out}
    if name := experiment_name():
        tags["dvc.experiment"] = name
    if run_id := os.environ.get("KFP_RUN_ID"):
        tags["kfp.run_id"] = run_id
    return tags


def _git_tags(folder: Path) -> dict[str, str]:
    try:
        import git
    except ImportError:  # GitPython refuses to load without the git program
        return {}
    try:
        with git.Repo(folder, search_parent_directories=True) as repository:
            commit = repository.head.commit.hexsha
            changes = repository.git.status("--porcelain", "--untracked-files=no", "--", ":(exclude,glob)**/dvc.lock")
    except (git.GitError, ValueError):  # not a repository, one that git does not trust, or one without a commit
        return {}
    return {"mlflow.source.git.commit": commit, "mdpr.git.dirty": str(bool(changes)).lower()}


def _dvc_lock() -> dict[str, Any]:
    """The stages of dvc.lock here, maybe in a temporary copy of the project; none if DVC did not start this process."""
    lock = Path("dvc.lock")
    return dict(read_yaml(lock).get("stages", {})) if DVC_ROOT in os.environ and lock.is_file() else {}


def flatten(tree: Mapping[str, Any] | BaseModel, parent: str = "") -> dict[str, Any]:
    """Nested mappings and pydantic models on one level: {"tune": {"loss": {"tau": 1}}} -> "tune.loss.tau"."""
    flat: dict[str, Any] = {}
    for key, value in (tree.model_dump() if isinstance(tree, BaseModel) else tree).items():
        name = f"{parent}.{key}" if parent else str(key)
        flat.update(flatten(value, name) if isinstance(value, Mapping | BaseModel) else {name: value})
    return flat
