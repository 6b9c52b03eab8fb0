"""The tasks of the pipelines that are no stage: shard, merge, vary, select, monitor, require, close.

A task's parameters travel as YAML text. Shards of the classes go through `describe` side by side, settings of a sweep
through `tune`. A user's mistake ends the process with one line and exit code 2.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpr.artifacts import ModelConfig, read_json, read_model_config, write_json
from mdpr.errors import CheckFailed, ConfigError, MdprError
from mdpr.evaluation.score_table import markdown_table
from mdpr.kubeflow.components import (
    TRAIN_JOB,
    Artifact,
    keep_outputs,
    keep_state,
    lay_over,
    one_line_errors,
    publish_workspace,
    read_sections,
    state_folder,
    summarise,
)
from mdpr.params import dump_yaml, parse_params
from mdpr.stages.describe import merge
from mdpr.stages.outputs import whole_or_not_at_all

logger = logging.getLogger(__name__)

# The states of a pipeline that ended well: of the cluster's backend, of kfp.local, of a pipeline from the cache.
SUCCEEDED = ("COMPLETE", "SUCCEEDED", "CACHED")
SHARED_LIMITS = ("requests_per_minute", "tokens_per_minute")  # of describe.llm: over all calls; 0 is none


def params_per_shard(params: str, shards: int) -> list[str]:
    """`params` (section describe) for each of `shards` shares of the classes.

    The budget and the limits per minute hold for all shards together, so each gets its share of them. Raises
    `ConfigError` for a number of shards that is none, or among which a limit cannot be divided.
    """
    if shards < 1:
        raise ConfigError(f"shards = {shards}: must be 1 or more")
    section = parse_params(read_sections(params, "params")).describe
    if section.shard:
        raise ConfigError(f"describe.shard = {section.shard} is set: leave it empty, the pipeline sets it")
    llm: dict[str, Any] = {}
    for name in SHARED_LIMITS:
        limit = getattr(section.llm, name)
        if 0 < limit < shards:
            raise ConfigError(f"describe.llm.{name} = {limit} cannot be shared by {shards} shards: make fewer")
        llm[name] = limit // shards
    changed = section.model_dump(mode="json") | {"budget_usd": section.budget_usd / shards}
    changed["llm"] |= llm
    return [dump_yaml({"describe": changed | {"shard": f"{number}/{shards}"}}) for number in range(1, shards + 1)]


def params_per_setting(params: str, settings: Sequence[str]) -> list[str]:
    """`params` (sections backbone, tracking and tune) under each of `settings`, YAML text with keys of tune.

    Raises `ConfigError` for a setting that is none of tune's, a value that is not allowed, and two that are the same.
    """
    base = read_sections(params, "params")
    if not settings:
        raise ConfigError("settings is empty: name one at least, like tune: {seed: 1}")
    varied: dict[str, str] = {}
    for setting in settings:
        changes = read_sections(setting, f"setting {setting!r}")
        if other := sorted(set(changes) - {"tune"}):
            raise ConfigError(f"setting {setting!r}: {other[0]} is not tune: a sweep varies only the settings of tune")
        merged = base | {"tune": lay_over(base.get("tune", {}), changes.get("tune") or {})}
        text = dump_yaml(parse_params(merged).dump(merged))
        if text in varied:
            raise ConfigError(f"settings {varied[text]!r} and {setting!r} are the same: each is tuned once")
        varied[text] = setting
    return list(varied)


# What the components call.
shard_params = one_line_errors()(params_per_shard)
vary_params = one_line_errors()(params_per_setting)


def merge_shards(
    params: str, shards: Sequence[Artifact], *, prepared: Artifact, probe: Artifact, knowledge: Artifact
) -> str:
    """One knowledge base from the shards that describe wrote, in any order; what the audit refuses, in one line."""
    with one_line_errors():
        section = parse_params(read_sections(params, "params")).describe
        folders = {f"shard {number}": Path(shard.path) for number, shard in enumerate(shards, start=1)}
        places = Path(prepared.path), Path(probe.path), Path(knowledge.path)
        problem = keep_outputs("merge", {"knowledge": places[-1]}, lambda: merge(folders, *places, section))
        knowledge.metadata.update(summarise(Path(knowledge.path)))
        return problem


def select_model(models: Sequence[Artifact], model: Artifact, choice: Artifact) -> None:
    """Copy the model of the highest class-balanced validation accuracy, metadata and all, and write down what it was
    chosen from. Of equals, the first is taken."""
    with one_line_errors():
        configs = [read_model_config(Path(candidate.path)) for candidate in models]
        # Of the model's own answer: fused, or base if it does not route.
        scores = [config.val_accuracy["fused" if config.tune.routing else "base"] for config in configs]
        best = scores.index(max(scores))
        with whole_or_not_at_all(
            {"model": Path(model.path)}, {f"model {n}": Path(item.path) for n, item in enumerate(models, 1)}
        ) as (partial,):
            shutil.copytree(models[best].path, partial)
        model.metadata.update(models[best].metadata)
        Path(choice.path).write_text(_table(configs, scores, best), encoding="utf-8")


def _table(configs: Sequence[ModelConfig], scores: Sequence[float], best: int) -> str:
    """Markdown, one row per model: the settings in which the models differ, and its validation accuracy."""
    settings = [config.tune.model_dump(mode="json") for config in configs]
    varied = [key for key in settings[0] if any(item[key] != settings[0][key] for item in settings)]
    rows = [
        [str(place + 1), *(str(values[key]) for key in varied), f"{100 * score:.2f}", "yes" if place == best else ""]
        for place, (values, score) in enumerate(zip(settings, scores, strict=True))
    ]
    table = markdown_table(["model", *varied, "validation accuracy, percent", "chosen"], rows)
    return f"# Chosen by validation\n\n{table}\n"


def require_none(problem: str) -> None:
    """End the process with `problem` as its one line and exit code 2, if there is one."""
    with one_line_errors():
        if problem:
            raise CheckFailed(problem)


def run_monitor(
    params: str, workspace: str, log: str, limits: Mapping[str, float], *, monitoring: Artifact, page: Artifact
) -> str:
    """`mdpr monitor` on the log and the reference of the champion; its advice, `retrain` without a champion.

    `params` is YAML text with the section tracking, `limits` are thresholds by their names.
    """
    from mdpr.mlops.registry import find_champion

    with one_line_errors(), tempfile.TemporaryDirectory() as scratch:
        sections = parse_params(read_sections(params, "params"))
        if workspace:
            sections = keep_state(sections, state_folder(Path(workspace), Path(monitoring.path)))
        name, folder = sections.tracking.model_name, Path(scratch)
        if find_champion(name) is None:
            write_json(Path(monitoring.path), {"advice": "retrain", "reason": f"{name} has no champion yet"})
            Path(page.path).write_text("<p>There is no champion yet.</p>\n", encoding="utf-8")
            return "retrain"
        file = folder / "params.yaml"
        file.write_text(dump_yaml(sections.dump(["tracking"])), encoding="utf-8")
        options = [f"--{key.replace('_', '-')}={value}" for key, value in limits.items()]
        command = [sys.executable, "-m", "mdpr", "monitor", "--params", str(file), "--output", scratch, "--log", log]
        code = subprocess.run([*command, "--reference", f"models:/{name}@champion", *options]).returncode
        if code not in (0, 1):
            raise MdprError(f"monitor failed with exit code {code}; its own line is above")
        content = read_json(folder / "monitor.json")
        shutil.copyfile(folder / "monitor.json", monitoring.path)
        shutil.copyfile(folder / "monitor.html", page.path)
        monitoring.metadata.update(summarise(Path(monitoring.path)))
        return str(content["advice"])


def close_runs(state: str, workspace: str = "") -> None:
    """Send MLflow what waits in `workspace`, stop a TrainJob that goes on without its task, and mark the MLflow runs
    that this run of Kubeflow left open as failed.

    `state`: how the pipeline ended, in the backend's words; after a task that was killed it may be RUNNING. KFP_RUN_ID
    is the run of Kubeflow; without it (on one machine) there is nothing to find.
    """
    from mdpr.mlops.runs import fail_open_runs

    run_id = os.environ.get("KFP_RUN_ID")
    with one_line_errors():
        if workspace:
            publish_workspace(Path(workspace))
            if any(Path(workspace).glob(f"*/{TRAIN_JOB}")):
                from mdpr.kubeflow.train_jobs import stop_jobs  # few runs need Kubernetes' client

                stop_jobs(Path(workspace))
        if state in SUCCEEDED or not run_id:
            return
        for closed in fail_open_runs("kfp.run_id", run_id):
            logger.info("MLflow run %s was left open: marked as failed", closed)
