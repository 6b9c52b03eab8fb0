"""What the components of the pipelines `knowledge` and `sweep` call, beside those of the stages."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mdpr.artifacts import read_model_config
from mdpr.config import DescribeParams, parse_params
from mdpr.errors import ConfigError
from mdpr.stages import variants
from mdpr.stages.kubeflow import Artifact, one_line_errors, read_sections, summarise
from mdpr.stages.merging import merge_shards as write_merged
from mdpr.stages.outputs import whole_or_not_at_all


def shard_params(params: str, shards: int) -> list[str]:
    """`variants.shard_params`; a user's mistake ends the process with one line."""
    with one_line_errors():
        return variants.shard_params(params, shards)


def vary_params(params: str, settings: Sequence[str]) -> list[str]:
    """`variants.vary_params`; a user's mistake ends the process with one line."""
    with one_line_errors():
        return variants.vary_params(params, settings)


def merge_shards(
    params: str, shards: Sequence[Artifact], *, prepared: Artifact, probe: Artifact, knowledge: Artifact
) -> None:
    """One knowledge base from the shards that describe wrote, in any order."""
    with one_line_errors():
        section = parse_params(read_sections(params, "params"))["describe"]
        assert isinstance(section, DescribeParams)
        folders = {f"shard {number}": Path(shard.path) for number, shard in enumerate(shards, start=1)}
        write_merged(folders, Path(prepared.path), Path(probe.path), Path(knowledge.path), section)
        knowledge.metadata.update(summarise(Path(knowledge.path)))


def select_model(models: Sequence[Artifact], model: Artifact, choice: Artifact) -> None:
    """Copy the model of the highest validation accuracy, metadata and all, and write down what it was chosen from."""
    with one_line_errors():
        scores = [validation_accuracy(Path(candidate.path)) for candidate in models]
        best = choose(scores)
        with whole_or_not_at_all([Path(model.path)]) as (partial,):
            shutil.copytree(models[best].path, partial)
        model.metadata.update(models[best].metadata)
        Path(choice.path).write_text(_table(models, scores, best), encoding="utf-8")


def choose(scores: Sequence[float]) -> int:
    """The place of the highest score, the first of equals. Raises `ConfigError` where there is none."""
    if not scores:
        raise ConfigError("there is no model to choose from")
    return max(range(len(scores)), key=scores.__getitem__)


def validation_accuracy(model: Path) -> float:
    """Class-balanced validation accuracy of the model's own answer: fused, or base where it does not route."""
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
