"""`mdpr pipeline run`: the whole pipeline on this machine, without a cluster.

mdpr pipeline run --runner subprocess                      tasks in processes of this environment
mdpr pipeline run --runner docker --set tune.epochs=5      tasks in containers of the two images
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click
from kfp import local
from kfp.dsl.graph_component import GraphComponent

from mdpr.knowledge.chat import find_key
from mdpr.kubeflow.components import read_sections
from mdpr.launch import DRIVER_PID
from mdpr.params import parse_params
from pipelines.cluster import ClusterProfile
from pipelines.graphs import VARIANTS
from pipelines.options import Request, read_params, request_options, stage_texts


@contextmanager
def in_processes(output: Path, profile: ClusterProfile) -> Iterator[None]:
    """Tasks as processes of this environment."""
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(output))
    os.environ[DRIVER_PID] = str(os.getpid())  # tasks end with this process, even if it is killed
    try:
        with warnings.catch_warnings():
            # kfp takes an image without python in its name for one that may lack packages.
            warnings.filterwarnings("ignore", "You may be attemping to run a task", RuntimeWarning)
            warnings.filterwarnings("ignore", ".* have no effect in the current local runner", UserWarning)
            yield
    finally:
        del os.environ[DRIVER_PID]


@contextmanager
def in_containers(output: Path, profile: ClusterProfile) -> Iterator[None]:
    """Tasks as containers of the two images; raises `ConfigError` if the engine or an image is missing."""
    from pipelines.docker import check_engine, docker_runner, trusted_exit_codes

    check_engine([profile.image_cpu, profile.image_gpu])
    local.init(docker_runner(output), pipeline_root=str(output))
    with trusted_exit_codes():
        yield


WORKSPACE = "workspace"  # in `output`: checkpoints, answers and results that MLflow does not have yet, of every run
RUNNERS: dict[str, Callable[[Path, ClusterProfile], AbstractContextManager[None]]] = {
    "subprocess": in_processes,
    "docker": in_containers,
}


def run_locally(runner: str, output: Path, request: Request) -> Path:
    """Run a pipeline with kfp's local `runner`; returns the folder of the run.

    `output` receives a folder for each run, in it one per task. kfp's own cache stays off: it does not notice a
    change in the code of an imported package. Raises `RuntimeError` (kfp's) that names the task which failed.
    """
    check_machine(request)
    profile, output = ClusterProfile(), output.resolve()
    # A process writes answers and unsent results where the command line does; what a container writes there is lost.
    workspace = output / WORKSPACE if runner == "docker" else None
    pipeline = without_retries(VARIANTS[request.variant].make(read_params(), profile, str(workspace or "")))
    output.mkdir(parents=True, exist_ok=True)
    before = set(output.iterdir())
    with RUNNERS[runner](output, profile):
        if workspace:
            workspace.mkdir(exist_ok=True)
        pipeline(**request.arguments)
    (run,) = (path for path in set(output.iterdir()) - before if path.name.startswith(request.pipeline_name))
    return run


def check_machine(request: Request) -> None:
    """Raise `KnowledgeError` or `BackboneError` if the key of a chat model or a GPU is needed and missing."""
    texts = stage_texts(read_params(), request.arguments)
    describe = parse_params(read_sections(texts["describe"], "describe")).describe
    backbone = parse_params(read_sections(texts["probe"], "probe")).backbone
    if describe.asks_server:
        find_key(describe.llm, os.environ)
    if backbone.device == "cuda":
        from mdpr.model.backbone import choose_device  # waits for torch

        choose_device(backbone.device)


def without_retries(pipeline: GraphComponent) -> GraphComponent:
    """`pipeline`, whose tasks fail at once: on one machine what failed fails again, and kfp waits in between."""
    spec = pipeline.pipeline_spec
    for component in (spec.root, *spec.components.values()):
        for task in component.dag.tasks.values():
            task.ClearField("retry_policy")
    return pipeline


@click.command("run")
@click.option("--runner", type=click.Choice(list(RUNNERS)), default="subprocess", show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("local_outputs"),
    show_default=True,
    help="receives a folder for each run",
)
@request_options
def run_command(runner: str, output: Path, request: Request) -> None:
    """Run a pipeline on this machine."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that a container is removed on the way out
    try:
        run = run_locally(runner, output, request)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    for what, where in VARIANTS[request.variant].results.items():
        click.echo(f"{what}: {run / where}")
