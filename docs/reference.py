"""A hook of mkdocs: pages that would go stale if they were written by hand are made when the site is built.

reference/commands.md     every command, from click
reference/parameters.md   every key of params.yaml, from pydantic
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to the site."""
    pages = {
        "reference/commands.md": commands_page(),
        "reference/parameters.md": parameters_page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def commands_page() -> str:
    """Every command of `mdpr` with its options."""
    from mdpr.cli import cli

    context = click.Context(cli, info_name="mdpr")
    parts = ["# Command line", "", _block(cli.get_help(context))]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts += _command(command, f"mdpr {name}", context)
    return "\n".join(parts) + "\n"


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name.rpartition(" ")[2], parent=parent)
    yield from ("", f"## {name}", "", _block(command.get_help(context)))
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _command(found, f"{name} {inner}", context)


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def parameters_page() -> str:
    """Every key of params.yaml: its default, what it may be, what it does."""
    from mdpr.params import SECTIONS

    parts = ["# Parameters", "", "What `params.yaml` may hold. `--set tune.epochs=5` sets a key for one command."]
    for name, section in SECTIONS.items():
        parts += ["", f"## {name}", "", _one_line(section.__doc__ or ""), "", "| key | default | |", "|---|---|---|"]
        parts += _rows(section, "")
    return "\n".join(parts) + "\n"


def _rows(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _rows(field.annotation, f"{prefix}{key}.")
            continue
        default = (
            "required" if field.default is PydanticUndefined and not field.default_factory else repr(field.default)
        )
        yield f"| `{prefix}{key}` | {_cell(f'`{default}`')} | {_cell(field.description or '')} |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")
