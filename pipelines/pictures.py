"""Pictures of the pipelines, as Mermaid, from the compiled YAML: what a cluster is given is what is drawn.

A solid arrow is an artifact handed on, with its name; a dotted one an order without one, drawn where nothing else
implies it. A hexagon asks for a GPU. Tasks in a frame with "for each" run once for every item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mdpr.errors import ConfigError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's reads a compiled pipeline ten times faster
MARKS = ("<!-- graph of {} -->", "<!-- end of the graph -->")


@dataclass(frozen=True)
class Scope:
    """The tasks of a graph that stands in another one; `outer` is where what it takes comes from."""

    tasks: Mapping[str, Any]
    components: Mapping[str, Any]
    outer: Scope | None = None
    inputs: Mapping[str, Any] | None = None  # of the task in `outer` that stands for this graph

    def component(self, task: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.components[self.tasks[task]["componentRef"]["name"]]
        return found

    def inner(self, task: str) -> Scope | None:
        """The graph that `task` stands for; None where it is a container."""
        dag = self.component(task).get("dag")
        inputs = self.tasks[task].get("inputs", {})
        return Scope(dag["tasks"], self.components, self, inputs) if dag else None

    def producer(self, source: Mapping[str, Any]) -> tuple[str, str]:
        """The task that makes an input's artifact, and the artifact's name, through the frames around both."""
        if "componentInputArtifact" in source:
            assert self.outer is not None
            assert self.inputs is not None
            return self.outer.producer(self.inputs["artifacts"][source["componentInputArtifact"]])
        output = source["taskOutputArtifact"]
        task, key = output["producerTask"], output["outputArtifactKey"]
        dag = self.component(task).get("dag")
        if dag is None:
            return task, key
        inner = self.inner(task)
        assert inner is not None
        (selector,) = dag["outputs"]["artifacts"][key]["artifactSelectors"]
        made = {"producerTask": selector["producerSubtask"], "outputArtifactKey": selector["outputArtifactKey"]}
        return inner.producer({"taskOutputArtifact": made})


def draw(file: Path) -> str:
    """The graph of a compiled pipeline as a Mermaid flow chart."""
    document = next(yaml.load_all(file.read_text("utf-8"), LOADER))
    containers = {name: item["container"] for name, item in document["deploymentSpec"]["executors"].items()}
    root = Scope(document["root"]["dag"]["tasks"], document["components"])
    return "\n".join(["flowchart LR", *_nodes(root, containers, "    "), *_arrows(root)])


def _nodes(scope: Scope, containers: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name in sorted(scope.tasks):
        inner = scope.inner(name)
        if inner is None:
            resources = containers[scope.component(name)["executorLabel"]].get("resources", {})
            yield f"{indent}{name}{{{{{name}}}}}" if "accelerator" in resources else f"{indent}{name}([{name}])"
            continue
        yield f'{indent}subgraph {name} ["{_title(scope.tasks[name])}"]'
        yield from _nodes(inner, containers, indent + "    ")
        yield f"{indent}end"


def _title(task: Mapping[str, Any]) -> str:
    iterator = task.get("parameterIterator")
    if iterator is None:
        return " "
    source = iterator["items"]["inputParameter"].removeprefix("pipelinechannel--")
    return f"for each of {source.removesuffix('-Output')}"


def _arrows(scope: Scope) -> Iterator[str]:
    for name in sorted(scope.tasks):
        inner = scope.inner(name)
        if inner is None:
            yield from (f"    {task} -- {key} --> {name}" for task, key in sorted(_artifacts(scope, name)))
        waits = set(scope.tasks[name].get("dependentTasks", ()))
        implied = {before for task in waits for before in _ancestors(scope, task)}
        shown = _reached(scope, name) | _loops(scope, name)
        yield from (f"    {task} -.-> {name}" for task in sorted(waits - implied - shown))
        if inner is not None:
            yield from _arrows(inner)


def _artifacts(scope: Scope, name: str) -> set[tuple[str, str]]:
    """Who hands the container `name` what."""
    return {scope.producer(source) for source in scope.tasks[name].get("inputs", {}).get("artifacts", {}).values()}


def _reached(scope: Scope, name: str) -> set[str]:
    """The tasks from which an arrow leads to `name`, or into the frame it is."""
    inner = scope.inner(name)
    if inner is None:
        return {task for task, _ in _artifacts(scope, name)}
    return set().union(*(_reached(inner, task) for task in inner.tasks))


def _loops(scope: Scope, name: str) -> set[str]:
    """The frames from inside which an artifact comes to `name`."""
    sources = scope.tasks[name].get("inputs", {}).get("artifacts", {}).values()
    made = {source["taskOutputArtifact"]["producerTask"] for source in sources if "taskOutputArtifact" in source}
    return {task for task in made if scope.inner(task) is not None}


def _ancestors(scope: Scope, name: str) -> set[str]:
    direct = set(scope.tasks[name].get("dependentTasks", ()))
    return direct.union(*(_ancestors(scope, task) for task in direct))


def with_pictures(text: str, graphs: Mapping[str, Path]) -> str:
    """`text` with the picture of each compiled pipeline between its marks; raises `ConfigError` where they are not."""
    for name, file in graphs.items():
        start, end = MARKS[0].format(name), MARKS[1]
        parts = re.split(f"({re.escape(start)}).*?({re.escape(end)})", text, flags=re.S)
        if len(parts) != 4:  # before, the two marks, after
            raise ConfigError(f"the README must hold the lines {start} and {end} once: put them back")
        before, *_, after = parts
        text = f"{before}{start}\n```mermaid\n{draw(file)}\n```\n{end}{after}"
    return text
