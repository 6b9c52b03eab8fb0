"""`mdpr`: the stages, each a command made from its signature and its settings, and the commands around them.

Starting up loads click and nothing heavy: `mdpr --help` must not wait for torch, mlflow or kfp.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mdpr.commands import PATH, TableGroup
from mdpr.errors import ConfigError, Interrupted, MdprError, printable
from mdpr.launch import DVC_STAGE, collect_rarely, read_launch
from mdpr.params import SECTIONS, load_params
from mdpr.params.describing import PREPARED, DescribeParams
from mdpr.stages.stage import MEMORY_MB, STAGES, Stage, load_stage, run_otherwise, run_stage

EXAMPLE_WIDTH = 90

EPILOG = """Stages run in the order shown. `dvc repro` runs them all and skips what is up to date; each stage is
also a component of the Kubeflow pipeline in pipelines/."""

CTRL_C = 130  # exit code
# Name -> its module in mdpr.commands, where it stands under that name, and its line in `mdpr --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("projects", "Make a project of your own: Git, DVC, settings, policy, README, CI workflow."),
    "demo": ("projects", "Run the whole chain on the embedded data in a folder of its own: `mdpr demo`."),
    "repro": ("projects", "`dvc repro`, also if this environment is not activated: `.venv/bin/mdpr repro`."),
    "knowledge": ("inputs", "Start, check or merge a knowledge base: `mdpr knowledge audit FILE`."),
    "summary": (
        "results",
        "Show the scores, the champion in the MLflow registry, the gate's decision and the report's path.",
    ),
    "report": ("results", "Make the report again with the gate's decision, and open it."),
    "compare": ("results", "Compare runs on the same test images: paired tests, corrected by Holm's method."),
    "registry": ("models", "Look into the MLflow model registry: versions, aliases, test figures."),
    "predict": ("models", "Classify image files, folders or a list of them with the champion or another model."),
    "serve": ("models", "Serve the champion over HTTP."),
    "monitor": ("monitor", "Judge what a deployed model answered: label shift, expected accuracy, drift of features."),
    "tracking": ("models", "Publish to MLflow what it could not take while it was down."),
    "recipe": ("projects", "List, show or use the settings of a known benchmark."),
    "pipeline": ("projects", "Compile the Kubeflow pipeline, run it here, or start it on a cluster."),
    "data": ("inputs", "See how a data set would be read; bring one that DVC keeps elsewhere into data/."),
}


def tables() -> dict[str, dict[str, str]]:
    """The commands with their lines, by the titles in `mdpr --help`."""
    return {"Stages, in order": STAGES, "Other commands": {name: line for name, (_, line) in COMMANDS.items()}}


def load(name: str) -> click.Command:
    """The command `name` of `tables`."""
    if name in STAGES:
        return stage_command(load_stage(name))
    command: click.Command = getattr(importlib.import_module(f"mdpr.commands.{COMMANDS[name][0]}"), name)
    return command


# --- mdpr STAGE ---------------------------------------------------------------------------------------------


class StageCommand(click.Command):
    """A stage's command, its options in groups: ports and flags, then settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = f"Settings (section `{self.name}` of params.yaml)"
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], own: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups[own if (parameter.name or "").startswith("setting_") else "Options"].append(record)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def stage_command(stage: Stage) -> click.Command:
    """Options: the stage's ports, --params, --set, one flag for each thing the stage can do instead of running, and
    every plain setting of the section named like the stage."""
    own = SECTIONS[stage.name].model_fields

    def run(params: Path, overrides: tuple[str, ...], **options: Any) -> None:
        settings = {key.removeprefix("setting_"): value for key, value in options.items() if key.startswith("setting_")}
        named = [f"{stage.name}.{key}={value}" for key, value in settings.items() if value is not None]
        sections = load_params(params, [*overrides, *named])
        for flag in stage.otherwise:
            if options[flag]:
                ports = stage.otherwise[flag].inputs
                run_otherwise(stage, flag, _paths(ports, options), sections)
                return
        if DVC_STAGE in os.environ:
            _check_dependency(sections.describe)
        run_stage(stage, _paths(stage.ports, options), sections)

    groups = {f"{stage.name}.{key}": field for key, field in own.items() if _is_group(field)}
    epilog = "\n\n".join(
        [f"\b\n{_describe_section(name, field.annotation, field.description)}" for name, field in groups.items()]
        + [f"\b\n{_describe_section(name, SECTIONS[name])}" for name in stage.sections.values() if name != stage.name]
        + ["Memory on the embedded data: {:,} MB resident, {:,} MB of address space.".format(*MEMORY_MB[stage.name])]
        + [f"\b\nExample:\n{_example(stage)}"]
    )
    return StageCommand(
        name=stage.name, callback=run, params=list(_options(stage, own)), help=STAGES[stage.name], epilog=epilog
    )


def _check_dependency(describe: DescribeParams) -> None:
    """Raises `ConfigError`, in the first stage that DVC runs, for a file that DVC would miss later and nobody reads."""
    if not describe.reads_file and describe.path != PREPARED and not Path(describe.path).exists():
        raise ConfigError(
            f"describe.path = {describe.path} does not exist, and dvc.yaml makes it a dependency: set it to "
            f"{PREPARED}, since provider = {describe.provider} reads no file"
        )


def _example(stage: Stage) -> str:
    """The command on the paths of dvc.yaml, over as many lines as it needs."""
    places = {"registration": "data/registration.json", "promotion": "data/promotion.json", "scores": "scores"}
    words = [f"mdpr {stage.name}", *(f"--{port} {places.get(port, f'data/{port}')}" for port in stage.ports)]
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < EXAMPLE_WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}")
    return " \\\n".join(f"  {line}" for line in lines)


def _paths(ports: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Path]:
    """The ports that are needed; a port that was not given is a usage error."""
    for port in ports:
        if options[port] is None:
            raise click.MissingParameter(param_hint=f"'--{port}'", param_type="option", ctx=click.get_current_context())
    return {port: options[port] for port in ports}


def _options(stage: Stage, settings: Mapping[str, FieldInfo]) -> Iterator[click.Parameter]:
    for direction, names in (("reads", stage.inputs), ("writes", stage.outputs)):
        for port in names:
            yield click.Option([f"--{port}"], type=PATH, metavar="PATH", help=f"{direction}: {port}")
    meaning = "parameters, one section per stage"
    yield click.Option(["--params"], type=PATH, default=Path("params.yaml"), show_default=True, help=meaning)
    meaning = "one parameter, over what the file says; may be repeated"
    yield click.Option(["--set", "overrides"], multiple=True, metavar="SECTION.KEY=VALUE", help=meaning)
    for flag, other in stage.otherwise.items():
        yield click.Option([f"--{flag.replace('_', '-')}", flag], is_flag=True, help=other.help)
    for key, field in settings.items():
        if (metavar := _metavar(field)) is None:
            continue
        flag, text = f"--{key.replace('_', '-')}", f"{field.description or ''} [default: {field.default!r}]"
        if field.annotation is bool:
            yield click.Option([f"{flag}/--no-{flag[2:]}", f"setting_{key}"], default=None, help=text)
        else:
            yield click.Option([flag, f"setting_{key}"], metavar=metavar, help=text)


def _metavar(field: FieldInfo) -> str | None:
    """The form of a plain setting's value; None for a group or a list, which `--set` takes."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    plain = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: "FLAG"}
    for kind in (annotation, *(part for part in get_args(annotation) if part is not type(None))):
        if kind in plain:
            return plain[kind]
    return None


def _is_group(field: FieldInfo) -> bool:
    """Whether a setting holds settings of its own."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _describe_section(name: str, model: Any, meaning: str | None = None) -> str:
    """The settings of a section that stages share, or of a group, as help text: name, default, meaning."""
    lines = [f"Settings in `{name}`, changed by --set {name}.KEY=VALUE:"]
    if meaning:
        lines.append(f"  {meaning}")
    for key, field in model.model_fields.items():
        default = "" if field.default_factory else f" [{field.default!r}]"
        lines.append(f"  {key}{default}: {field.description or ''}")
    return "\n".join(lines)


# --- mdpr ---------------------------------------------------------------------------------------------------


class PrintableFormatter(logging.Formatter):
    """One line per message: a control character in a name is shown escaped and never reaches the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(record.message)


@click.group(cls=TableGroup, tables=tables, load=load, epilog=EPILOG, context_settings={"max_content_width": 110})
@click.version_option(package_name="mdpr")
@click.option("--verbose", "-v", is_flag=True, help="Show debug messages, and the traceback of an error.")
def cli(verbose: bool) -> None:
    """Tune CLIP on long-tailed data with multi-dimensional dynamic prompt routing (MDPR)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    level = logging.INFO if read_launch().is_main else logging.WARNING  # of torchrun's processes only the main one
    logging.getLogger("mdpr").setLevel(logging.DEBUG if verbose else level)
    logging.getLogger("urllib3").setLevel(logging.DEBUG if verbose else logging.ERROR)  # it warns of each try


def main() -> None:
    """Entry point: one line and exit code 2 for a user's mistake, 130 for Ctrl-C."""
    collect_rarely()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character of a name or a table
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()  # what is printed last may find the disk of `> file` full
    except click.exceptions.Abort:
        code = CTRL_C
    except BrokenPipeError:  # `mdpr registry list | head -1`
        code = 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (MdprError, OSError) as error:
        if logging.getLogger("mdpr").isEnabledFor(logging.DEBUG):
            logging.getLogger("mdpr").exception("traceback")
        click.echo(f"error: {printable(str(error))}", err=True)
        code = error.exit_code if isinstance(error, MdprError) else 2
    try:
        sys.stdout.flush()
    except OSError:  # the output that failed is still waiting: it must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code in (CTRL_C, Interrupted.exit_code):
        # A thread may still compute in a library: torch aborts the process if the interpreter ends meanwhile.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
