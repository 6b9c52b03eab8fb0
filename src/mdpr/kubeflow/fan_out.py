"""Fan-out and fan-in: shards of the classes for `describe`, settings of a sweep for `tune`.

The components of the pipelines `knowledge` and `sweep` call these functions. Parameters travel as YAML text.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpr.artifacts import read_model_config
from mdpr.errors import ConfigError
from mdpr.kubeflow.components import Artifact, keep_outputs, lay_over, one_line_errors, read_sections, summarise
from mdpr.params import DescribeParams, dump_yaml, parse_params
from mdpr.stages.outputs import whole_or_not_at_all

SHARED_LIMITS = ("requests_per_minute", "tokens_per_minute")  # of describe.llm: over all calls; 0 is none


def params_per_shard(params: str, shards: int) -> list[str]:
    """`params` (section describe) for each of `shards` shares of the classes.

    The budget and the limits a minute hold for all shards together, so each gets its share of them. Raises
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


def shard_params(params: str, shards: int) -> list[str]:
    """`params_per_shard`; a user's mistake ends the process with one line."""
    with one_line_errors():
        return params_per_shard(params, shards)


def vary_params(params: str, settings: Sequence[str]) -> list[str]:
    """`params_per_setting`; a user's mistake ends the process with one line."""
    with one_line_errors():
        return params_per_setting(params, settings)


def merge_shards(
    params: str, shards: Sequence[Artifact], *, prepared: Artifact, probe: Artifact, knowledge: Artifact
) -> str:
    """One knowledge base from the shards that describe wrote, in any order; what the audit refuses, in one line."""
    with one_line_errors():
        section = parse_params(read_sections(params, "params")).describe
        folders = {f"shard {number}": Path(shard.path) for number, shard in enumerate(shards, start=1)}
        places = Path(prepared.path), Path(probe.path), Path(knowledge.path)
        problem = keep_outputs("merge", {"knowledge": places[-1]}, lambda: write_merged(folders, *places, section))
        knowledge.metadata.update(summarise(Path(knowledge.path)))
        return problem


def select_model(models: Sequence[Artifact], model: Artifact, choice: Artifact) -> None:
    """Copy the model of the highest validation accuracy, metadata and all, and write down what it was chosen from."""
    with one_line_errors():
        scores = [validation_accuracy(Path(candidate.path)) for candidate in models]
        best = choose(scores)
        with whole_or_not_at_all(
            {"model": Path(model.path)}, {f"model {n}": Path(item.path) for n, item in enumerate(models, 1)}
        ) as (partial,):
            shutil.copytree(models[best].path, partial)
        model.metadata.update(models[best].metadata)
        Path(choice.path).write_text(_table(models, scores, best), encoding="utf-8")


def choose(scores: Sequence[float]) -> int:
    """The place of the highest score, the first of equals. Raises `ConfigError` if there is none."""
    if not scores:
        raise ConfigError("there is no model to choose from")
    return max(range(len(scores)), key=scores.__getitem__)


def validation_accuracy(model: Path) -> float:
    """Class-balanced validation accuracy of the model's own answer: fused, or base if it does not route."""
    config = read_model_config(model)
    return config.val_accuracy["fused" if config.tune.routing else "base"]


def _table(models: Sequence[Artifact], scores: Sequence[float], best: int) -> str:
    """Markdown, one row a model: what it was tuned with that another was not, and its validation accuracy."""
    settings = [read_model_config(Path(item.path)).tune.model_dump(mode="json") for item in models]
    varied = [key for key in settings[0] if any(item[key] != settings[0][key] for item in settings)]
    head = ["model", *varied, "validation accuracy, percent", "chosen"]
    lines = ["# Chosen by validation", "", _row(head), _row(["---"] * len(head))]
    for place, (values, score) in enumerate(zip(settings, scores, strict=True)):
        mark = "yes" if place == best else ""
        lines.append(_row([str(place + 1), *(str(values[key]) for key in varied), f"{100 * score:.2f}", mark]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_merged(
    shards: Mapping[str, Path], prepared: Path, probe: Path, knowledge: Path, params: DescribeParams
) -> None:
    """Write knowledge.json of all classes, audit.json of the whole, and index.html to read both; whole or not at all.

    `shards`: name -> folder that describe wrote with `describe.shard`. Raises `KnowledgeError` where they do not fit
    together, and as describe does for what the audit finds.
    """
    from mdpr.artifacts import parse_knowledge, read_classes, read_probe
    from mdpr.knowledge.bases import Gathered, merge
    from mdpr.knowledge.write import write_knowledge

    classes = read_classes(prepared)
    rival_C = read_probe(probe, [item.name for item in classes]).rival_C.tolist()
    merged = merge({name: parse_knowledge(path / "knowledge.json") for name, path in shards.items()}, classes)
    with whole_or_not_at_all({"knowledge": knowledge}, {**shards, "prepared": prepared, "probe": probe}) as (partial,):
        write_knowledge(Gathered(merged), classes, rival_C, partial, params)
