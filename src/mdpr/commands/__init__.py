"""The commands of `mdpr`, and the option that most of them take."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
params_option = click.option("--params", type=PATH, default=Path("params.yaml"), show_default=True, help="the settings")
