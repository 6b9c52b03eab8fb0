"""`mdpr pipeline`: the Kubeflow pipeline, the project's own if the working folder has one, else the package's.

The graph is imported only when one of its commands is used.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import click

from mdpr.commands.stage import TableGroup, accept_verbose
from mdpr.errors import MdprError

PACKAGE = "pipelines"


class ProjectGroup(TableGroup):
    """The commands that the project's package names in `COMMANDS` (name -> module, line of help)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(load(PACKAGE).COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _ = load(PACKAGE).COMMANDS[cmd_name]
        command: click.Command = getattr(load(f"{PACKAGE}.{module}"), f"{cmd_name}_command")
        return accept_verbose(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in load(PACKAGE).COMMANDS.items()])


def load(name: str) -> ModuleType:
    """A module of the graph's package; raises `MdprError` if a library is missing."""
    from mdpr.project import packaged

    own = Path.cwd() / PACKAGE / "__init__.py"
    folder = Path.cwd() if own.is_file() else packaged(PACKAGE).parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # behind the libraries: a folder here must not stand in for one of them
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MdprError(f"mdpr pipeline needs {error.name}: pip install 'mdpr[pipeline]'") from None


@click.group("pipeline", cls=ProjectGroup)
def pipeline() -> None:
    """Compile the Kubeflow pipeline, run it here, or start it on a cluster."""
