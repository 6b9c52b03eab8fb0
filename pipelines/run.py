"""`mdpr pipeline run`: the whole pipeline on this machine, without a cluster.

mdpr pipeline run --runner subprocess                      tasks in processes of this environment
mdpr pipeline run --runner docker --set tune.epochs=5      tasks in containers of the two images
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click
from kfp import local
from kfp.dsl.graph_component import GraphComponent

from pipelines.settings import arguments, read_params, recipe_option, set_option
from pipelines.site import Site, read_site
from pipelines.training import NAME, training_pipeline


@contextmanager
def in_processes(output: Path, site: Site) -> Iterator[None]:
    """Tasks as processes of this environment."""
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(output))
    with warnings.catch_warnings():
        # It misses the word python in the image's name, and thinks of packages that may be missing.
        warnings.filterwarnings("ignore", "You may be attemping to run a task", RuntimeWarning)
        warnings.filterwarnings("ignore", ".* have no effect in the current local runner", UserWarning)
        yield


@contextmanager
def in_containers(output: Path, site: Site) -> Iterator[None]:
    """Tasks as containers of the two images; raises `ConfigError` where the engine or an image is missing."""
    from pipelines.docker import check_engine, docker_runner, trusted_exit_codes

    check_engine([site.image_cpu, site.image_gpu])
    local.init(docker_runner(output), pipeline_root=str(output))
    with trusted_exit_codes():
        yield


RUNNERS: dict[str, Callable[[Path, Site], AbstractContextManager[None]]] = {
    "subprocess": in_processes,
    "docker": in_containers,
}


def run_locally(runner: str, output: Path, values: dict[str, str]) -> Path:
    """Run the pipeline with kfp's local `runner` and the parameters `values`; returns the folder of the run.

    `output` receives a folder for each run, in it one a task. kfp's own cache stays off: it knows nothing of a
    change in the code of an imported package. Raises `RuntimeError` (kfp's) that names the task which failed.
    """
    site, output = read_site(None), output.resolve()
    pipeline = without_retries(training_pipeline(read_params(), site))
    output.mkdir(parents=True, exist_ok=True)
    before = set(output.iterdir())
    with RUNNERS[runner](output, site):
        pipeline(**values)
    (run,) = (path for path in set(output.iterdir()) - before if path.name.startswith(NAME))
    return run


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
@recipe_option
@set_option
def command(runner: str, output: Path, recipe: str, settings: tuple[str, ...]) -> None:
    """Run the training pipeline on this machine."""
    values = arguments(read_params(), recipe, settings)
    try:
        run = run_locally(runner, output, values)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"report: {run / 'evaluate' / 'evaluation' / 'report.html'}")
    click.echo(f"promotion: {run / 'promote' / 'promotion'}")
