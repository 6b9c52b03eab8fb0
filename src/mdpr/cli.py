"""`mdpr STAGE`: the command line, made from the stages' own signatures.

Starting up loads click and nothing heavy: `mdpr --help` must not wait for torch, mlflow or kfp.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from mdpr.errors import MdprError
from mdpr.stages.definition import STAGES, Stage, load_stage, run_stage

EPILOG = """Stages run in the order shown. `dvc repro` runs them all and skips what is up to date; each stage is
also a component of the Kubeflow pipeline in pipelines/."""


class StageGroup(click.Group):
    """Stage commands are built when they are asked for; the list of them comes from a table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*STAGES, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return stage_command(load_stage(cmd_name)) if cmd_name in STAGES else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Stages, in order"):
            formatter.write_dl(list(STAGES.items()))
        if self.commands:
            with formatter.section("Other commands"):
                others = sorted(self.commands.items())
                formatter.write_dl([(name, command.get_short_help_str(100)) for name, command in others])


def stage_command(stage: Stage) -> click.Command:
    """A command whose options are the stage's ports, plus --params and --set."""
    from mdpr.config import SECTIONS, load_params

    def run(params: Path, overrides: tuple[str, ...], **paths: str) -> None:
        run_stage(stage, {port: Path(path) for port, path in paths.items()}, load_params(params, overrides))

    ports = [
        click.Option([f"--{port}"], required=True, metavar="PATH", help=f"{direction}: {port}")
        for direction, names in (("reads", stage.inputs), ("writes", stage.outputs))
        for port in names
    ]
    settings = [
        click.Option(
            ["--params"],
            type=click.Path(path_type=Path),
            default=Path("params.yaml"),
            show_default=True,
            help="parameters, one section a stage",
        ),
        click.Option(
            ["--set", "overrides"],
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="one parameter, over what the file says; may be repeated",
        ),
    ]
    tables = "\n\n".join(_describe_section(name, SECTIONS[name]) for name in stage.sections.values())
    return click.Command(
        stage.name, callback=run, params=[*ports, *settings], help=STAGES[stage.name], epilog=f"\b\n{tables}"
    )


def _describe_section(name: str, model: Any) -> str:
    """The settings of one section as help text: name, default, meaning."""
    lines = [f"Settings in `{name}`:"]
    for key, field in model.model_fields.items():
        default = "" if field.default_factory else f" [{field.default!r}]"
        lines.append(f"  {key}{default}: {field.description or ''}")
    return "\n".join(lines)


@click.group(cls=StageGroup, epilog=EPILOG, context_settings={"max_content_width": 110})
@click.version_option(package_name="mdpr")
@click.option("--verbose", "-v", is_flag=True, help="Show debug messages, and the traceback of an error.")
def cli(verbose: bool) -> None:
    """Tune CLIP on long-tailed data with multi-dimensional dynamic prompt routing (MDPR)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mdpr").setLevel(logging.DEBUG if verbose else logging.INFO)


@cli.command()
@click.option("--evaluation", type=click.Path(path_type=Path), default=Path("data/evaluation"), show_default=True)
@click.option("--promotion", type=click.Path(path_type=Path), default=Path("data/promotion.json"), show_default=True)
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True)
def summary(evaluation: Path, promotion: Path, params: Path) -> None:
    """Show the scores, the champion in the MLflow registry, the gate's decision and the report's path."""
    from rich.console import Console

    from mdpr.config import TrackingParams, load_params
    from mdpr.summary import read_summary, render

    tracking = load_params(params)["tracking"]
    assert isinstance(tracking, TrackingParams)
    Console().print(render(read_summary(evaluation, promotion, tracking)))


def main() -> None:
    """Entry point: one line and exit code 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except MdprError as error:
        if logging.getLogger("mdpr").isEnabledFor(logging.DEBUG):
            logging.getLogger("mdpr").exception("traceback")
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
