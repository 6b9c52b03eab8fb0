"""The whole pipeline on this machine, without a cluster.

python -m pipelines.local --runner subprocess                      tasks in processes of this environment
python -m pipelines.local --runner docker --set tune.epochs=5      tasks in containers of the two images
"""

from __future__ import annotations

import warnings
from pathlib import Path

import click
from components.images import IMAGE_CPU, IMAGE_GPU
from kfp import local
from kfp.dsl.graph_component import GraphComponent

from pipelines.command import Command, overrides_text, set_option
from pipelines.training import NAME, read_params, training_pipeline

RUNNERS = ("subprocess", "docker")


def run_locally(runner: str, output: Path, overrides: str = "") -> Path:
    """Run the pipeline with kfp's local `runner`; returns the folder of the run, one folder a task in it.

    `output` receives a folder for each run. kfp's own cache stays off: it knows nothing of a change in the
    code of an imported package. Raises `RuntimeError` (kfp's) that names the task which failed.
    """
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    before = set(output.iterdir())
    pipeline = without_retries(training_pipeline(read_params()))
    if runner == "docker":
        from pipelines.docker import check_engine, docker_runner, trusted_exit_codes

        check_engine([IMAGE_CPU, IMAGE_GPU])
        local.init(docker_runner(output), pipeline_root=str(output))
        with trusted_exit_codes():
            pipeline(overrides=overrides)
    else:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(output))
        with warnings.catch_warnings():
            # It misses the word python in the image's name, and thinks of packages that may be missing.
            warnings.filterwarnings("ignore", "You may be attemping to run a task", RuntimeWarning)
            warnings.filterwarnings("ignore", ".* have no effect in the current local runner", UserWarning)
            pipeline(overrides=overrides)
    (run,) = (path for path in set(output.iterdir()) - before if path.name.startswith(NAME))
    return run


def without_retries(pipeline: GraphComponent) -> GraphComponent:
    """`pipeline`, whose tasks fail at once: on one machine what failed fails again, and kfp waits in between."""
    for task in pipeline.pipeline_spec.root.dag.tasks.values():
        task.ClearField("retry_policy")
    return pipeline


@click.command(cls=Command)
@click.option("--runner", type=click.Choice(RUNNERS), default=RUNNERS[0], show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("local_outputs"),
    show_default=True,
    help="receives a folder for each run",
)
@set_option
def main(runner: str, output: Path, settings: tuple[str, ...]) -> None:
    """Run the training pipeline on this machine."""
    overrides = overrides_text(read_params(), settings)
    try:
        run = run_locally(runner, output, overrides)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"report: {run / 'evaluate' / 'evaluation' / 'report.html'}")
    click.echo(f"promotion: {run / 'promote' / 'promotion'}")


if __name__ == "__main__":
    main()
