"""The commands of `mdpr`, and what they share: options, and groups whose commands load when they are used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mdpr.params import TrackingParams, load_params
from mdpr.params.section import suggest

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
