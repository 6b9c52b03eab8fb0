"""What the commands share: parameters from params.yaml, `--set`, `--site`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from mdpr.config import apply_overrides, load_params
from mdpr.stages.kubeflow import merge_params

PARAMS_FILE = Path(__file__).resolve().parents[1] / "params.yaml"

set_option = click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="one parameter; may be repeated"
)
recipe_option = click.option("--recipe", default="", metavar="NAME", help="settings of a known benchmark to start from")
site_option = click.option(
    "--site",
    "site_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file that says what the cluster offers; without it, the defaults of pipelines/site.py",
)


def read_params(path: Path = PARAMS_FILE) -> dict[str, dict[str, Any]]:
    """All sections of params.yaml, complete and checked; raises `ConfigError`."""
    return {name: section.model_dump(mode="json") for name, section in load_params(path).items()}


def arguments(params: Mapping[str, Any], recipe: str, settings: Sequence[str]) -> dict[str, str]:
    """The pipeline's parameters `recipe` and `overrides` from the command line, checked on top of `params`.

    Raises `ConfigError` for a recipe, a key or a value that is not allowed: before anything is started.
    """
    overrides: str = yaml.safe_dump(apply_overrides({}, settings)) if settings else ""
    merge_params(yaml.safe_dump(dict(params)), {}, overrides, recipe)
    return {"recipe": recipe, "overrides": overrides}
