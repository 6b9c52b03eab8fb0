"""`mdpr STAGE`: a command made from the stage's own signature and its section of params.yaml."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mdpr.errors import ConfigError
from mdpr.launch import DVC_STAGE
from mdpr.params import SECTIONS, TrackingParams, load_params
from mdpr.params.describing import PREPARED, DescribeParams
from mdpr.params.section import suggest
from mdpr.stages.stage import MEMORY_MB, STAGES, Stage, run_otherwise, run_stage

EXAMPLE_WIDTH = 90
PATH = click.Path(path_type=Path)
# Of every command that reads the settings.
params_option = click.option("--params", type=PATH, default=Path("params.yaml"), show_default=True, help="the settings")


def read_tracking(params: Path) -> TrackingParams:
    """The section tracking of a command that needs no project: its defaults if there is no file `params`."""
    return load_params(params).tracking if params.exists() else TrackingParams()


class TableGroup(click.Group):
    """A group whose commands are built when they are used, by `load`; an unknown name gets a suggestion.

    `tables`: title -> name of a command -> its line of help.
    """

    def __init__(
        self,
        *,
        tables: Callable[[], Mapping[str, Mapping[str, str]]],
        load: Callable[[str], click.Command],
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.tables, self.load = tables, load

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for table in self.tables().values() for name in table]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return accept_verbose(self.load(cmd_name)) if cmd_name in self.list_commands(ctx) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, table in self.tables().items():
            with formatter.section(title):
                formatter.write_dl(list(table.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in (known := self.list_commands(ctx)):
            ctx.fail(f"No such command {args[0]!r}{suggest(args[0], known)}")
        return super().resolve_command(ctx, args)


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


def set_verbose(context: click.Context, option: click.Parameter, verbose: bool) -> None:
    """Show debug messages from here on."""
    if verbose:
        logging.getLogger("mdpr").setLevel(logging.DEBUG)


def accept_verbose(command: click.Command) -> click.Command:
    """`command`, which takes -v behind its name as well as before it; so do the commands of a group."""
    if not any(parameter.name == "verbose" for parameter in command.params):
        flags, text = ["--verbose", "-v"], "Show debug messages, and the traceback of an error."
        command.params.append(click.Option(flags, is_flag=True, expose_value=False, callback=set_verbose, help=text))
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        accept_verbose(inner)
    return command
