"""`mdpr pipeline compile`: the pipelines as YAML, in two documents: the graph, and its Kubernetes options.

The graphs in pipelines/graphs.md are drawn from the same YAML, as Mermaid, and checked with it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from kfp import compiler

from mdpr.errors import CheckFailed, ConfigError
from pipelines.cluster import ClusterProfile, read_profile
from pipelines.graphs import VARIANTS
from pipelines.options import cluster_option, read_params

FOLDER = Path(__file__).resolve().parent  # of the pipelines compiled for the default profile; CI fails if one is stale
GRAPHS = "graphs.md"
MARKS = ("<!-- graph of {} -->", "<!-- end of the graph -->")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's reads a compiled pipeline ten times faster
NOTE = """\
# Compiled by `mdpr pipeline compile` for the default cluster profile: the images have no registry.
# For a cluster: mdpr pipeline compile --cluster cluster.yaml --output build, then upload build/{name}.
"""


def compile_pipeline(output: Path, profile: ClusterProfile, variant: str = "training") -> None:
    """Write a pipeline, with params.yaml as it is now, to `output`."""
    compiler.Compiler().compile(VARIANTS[variant].make(read_params(), profile), str(output))
    if profile == ClusterProfile():
        output.write_text(NOTE.format(name=output.name) + output.read_text("utf-8"), "utf-8")


def compiled(folder: Path, variant: str) -> Path:
    """The file of the pipeline `variant` in `folder`."""
    return folder / f"{variant}.yaml"


def stale(folder: Path, profile: ClusterProfile) -> list[Path]:
    """The files in `folder` that compiling now would change: compiled pipelines, and the page with their graphs."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        if (folder / GRAPHS).is_file():
            (fresh / GRAPHS).write_bytes((folder / GRAPHS).read_bytes())
        written = write_pipelines(fresh, profile)
        return [folder / path.name for path in written if _differs(folder / path.name, path)]


def _differs(file: Path, fresh: Path) -> bool:
    return not file.is_file() or file.read_bytes() != fresh.read_bytes()


def write_pipelines(folder: Path, profile: ClusterProfile) -> list[Path]:
    """Compile every pipeline into `folder`, and draw them in the page that lies there; returns what was written."""
    files = {variant: compiled(folder, variant) for variant in VARIANTS}
    for variant, file in files.items():
        compile_pipeline(file, profile, variant)
    page = folder / GRAPHS
    if not page.is_file():
        return list(files.values())
    page.write_text(with_pictures(page.read_text("utf-8"), files), "utf-8")
    return [*files.values(), page]


def draw(file: Path) -> str:
    """The graph of a compiled pipeline as a Mermaid flow chart.

    A solid arrow is an artifact handed on, with its name; a dotted one only an order, if no other arrow implies it. A
    hexagon needs a GPU. A frame around tasks is drawn as Kubeflow has it: "for each" runs once per item.
    """
    document = next(yaml.load_all(file.read_text("utf-8"), LOADER))
    return "\n".join(["flowchart LR", *_frame(document["root"]["dag"]["tasks"], document, "    ")])


def _frame(tasks: Mapping[str, Any], document: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, task in sorted(tasks.items()):
        component = document["components"][task["componentRef"]["name"]]
        if "dag" in component:
            items = task.get("parameterIterator", {}).get("items", {}).get("inputParameter", "")
            source = items.removeprefix("pipelinechannel--").removesuffix("-Output")
            title = f"for each of {source}" if source else _condition(task) or " "
            yield f'{indent}subgraph {name} ["{title}"]'
            yield from _frame(component["dag"]["tasks"], document, f"{indent}    ")
            yield f"{indent}end"
        else:
            container = document["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
            gpu = "accelerator" in container.get("resources", {})
            yield f"{indent}{name}{{{{{name}}}}}" if gpu else f"{indent}{name}([{name}])"
        given = [source.get("taskOutputArtifact") for source in task.get("inputs", {}).get("artifacts", {}).values()]
        made = {(item["producerTask"], item["outputArtifactKey"]) for item in given if item}
        yield from (f"{indent}{before} -- {_plain(artifact)} --> {name}" for before, artifact in sorted(made))
        waits = set(task.get("dependentTasks", ())) - {before for before, _ in made}
        implied = {early for late in task.get("dependentTasks", ()) for early in _before(tasks, late)}
        yield from (f"{indent}{before} -.-> {name}" for before in sorted(waits - implied))


def _condition(task: Mapping[str, Any]) -> str:
    """`if monitor is retrain`, of a frame that Kubeflow enters only if the task `monitor` returns that."""
    condition = task.get("triggerPolicy", {}).get("condition", "")
    found = re.search(r"pipelinechannel--(\w+)-Output'\] == '(\w+)'", condition)
    return "if {} is {}".format(*found.groups()) if found else ""


def _plain(artifact: str) -> str:
    """The name of an artifact that leaves a frame, without the channel it came by: pipelinechannel--tune-model."""
    return artifact.rpartition("-")[2] if artifact.startswith("pipelinechannel--") else artifact


def _before(tasks: Mapping[str, Any], name: str) -> set[str]:
    direct = set(tasks[name].get("dependentTasks", ()))
    return direct.union(*(_before(tasks, task) for task in direct))


def with_pictures(text: str, graphs: Mapping[str, Path]) -> str:
    """`text` with the graph of each compiled pipeline between its marks; raises `ConfigError` if a mark is missing."""
    for name, file in graphs.items():
        start, end = MARKS[0].format(name), MARKS[1]
        parts = re.split(f"({re.escape(start)}).*?({re.escape(end)})", text, flags=re.S)
        if len(parts) != 4:  # before, the two marks, after
            raise ConfigError(f"{GRAPHS} must hold the lines {start} and {end} once: put them back")
        before, *_, after = parts
        text = f"{before}{start}\n```mermaid\n{draw(file)}\n```\n{end}{after}"
    return text


@contextmanager
def package(profile: ClusterProfile, variant: str) -> Iterator[Path]:
    """The file to upload, made for this cluster. Raises `ConfigError` if the committed one of its profile is stale."""
    with tempfile.TemporaryDirectory() as name:
        fresh = compiled(Path(name), variant)
        compile_pipeline(fresh, profile, variant)
        if profile == ClusterProfile() and FOLDER.parent == Path.cwd() and _differs(FOLDER / fresh.name, fresh):
            raise ConfigError(f"{fresh.name} is stale: run mdpr pipeline compile, then try again")
        yield fresh


@click.command("compile")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    help="folder that receives a file per pipeline",
)
@click.option("--check", is_flag=True, help="Write nothing; fail if a file is stale.")
@cluster_option
def compile_command(output: Path, check: bool, profile_file: Path | None) -> None:
    """Compile the pipelines, and draw their graphs in graphs.md beside them."""
    profile = read_profile(profile_file)
    if check:
        if faulty := stale(output, profile):
            names = ", ".join(str(path) for path in faulty)
            raise CheckFailed(f"stale: {names}; run mdpr pipeline compile")
        return
    if output == FOLDER and FOLDER.parent != Path.cwd():
        raise ConfigError(f"{Path.cwd()} is not the folder of these pipelines: name the folder to write to by --output")
    if not output.is_dir():
        raise ConfigError(f"{output} does not exist: make the folder, or name another --output")
    for path in write_pipelines(output, profile):
        click.echo(f"wrote {path}")
