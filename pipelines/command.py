"""Entry points of this package: a user's mistake is one line and exit code 2, as in `mdpr`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
import yaml

from mdpr.config import apply_overrides
from mdpr.errors import MdprError
from mdpr.stages.kubeflow import merge_params

set_option = click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="one parameter; may be repeated"
)


class Command(click.Command):
    """A command whose `MdprError` is a line on stderr instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MdprError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


def overrides_text(params: Mapping[str, Any], settings: Sequence[str]) -> str:
    """`section.key=value` strings as the pipeline's parameter `overrides`, checked on top of the sections `params`.

    Raises `ConfigError`.
    """
    text: str = yaml.safe_dump(apply_overrides({}, settings)) if settings else ""
    merge_params(yaml.safe_dump(dict(params)), {}, text)
    return text
