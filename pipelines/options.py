"""Options that the commands share: which pipeline, with which parameters, on which cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mdpr.errors import ConfigError
from mdpr.kubeflow.components import as_sections, merge_params
from mdpr.params import apply_overrides, dump_yaml, load_params, parse_yaml, read_value
from pipelines.graphs import CHOICES, VARIANTS

PARAMS_FILE = Path(__file__).resolve().parents[1] / "params.yaml"

set_option = click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="one parameter; may be repeated"
)
recipe_option = click.option("--recipe", default="", metavar="NAME", help="settings of a known benchmark to start from")
cluster_option = click.option(
    "--cluster",
    "profile_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file with the profile of the cluster; without it, the defaults of pipelines/cluster.py",
)


@dataclass(frozen=True)
class Request:
    """A pipeline by name, and its arguments, checked."""

    variant: str
    arguments: Mapping[str, Any]

    @property
    def pipeline_name(self) -> str:
        return VARIANTS[self.variant].pipeline_name


def request_options(function: Callable[..., None]) -> Callable[..., None]:
    """--variant, --recipe, --set and --parameter, checked before anything is started, as one argument `request`."""

    @functools.wraps(function)
    def command(
        *, variant: str, recipe: str, settings: tuple[str, ...], parameters: tuple[str, ...], **rest: Any
    ) -> None:
        function(request=Request(variant, arguments(read_params(), recipe, settings, variant, parameters)), **rest)

    for option in (
        click.option(
            "--parameter",
            "parameters",
            multiple=True,
            metavar="NAME=VALUE",
            help="a parameter of the pipeline as the UI names it, such as shards or settings; may be repeated",
        ),
        set_option,
        recipe_option,
        click.option(
            "--variant", type=click.Choice(list(VARIANTS)), default="training", show_default=True, help="which pipeline"
        ),
    ):
        command = option(command)
    return command


def read_params() -> dict[str, dict[str, Any]]:
    """All sections of params.yaml, complete and checked: of the working folder, else of the folder of this package.

    Raises `ConfigError`.
    """
    own = Path.cwd() / PARAMS_FILE.name
    return load_params(own if own.is_file() else PARAMS_FILE).dump()


def arguments(
    params: Mapping[str, Any],
    recipe: str,
    settings: Sequence[str],
    variant: str = "training",
    parameters: Sequence[str] = (),
) -> dict[str, Any]:
    """The arguments of the pipeline `variant` from the command line, checked on top of `params`.

    Raises `ConfigError` for a recipe, a key or a value that is not allowed: before anything is started.
    """
    overrides: str = dump_yaml(apply_overrides({}, settings)) if settings else ""
    known = VARIANTS[variant].parameters(params)
    chosen = dict(_parameter(text, variant, known) for text in parameters)
    values = {"recipe": recipe, "overrides": overrides, **chosen}
    VARIANTS[variant].check(stage_texts(params, values), {name: item.default for name, item in known.items()} | chosen)
    return values | {name: _as_kind(value, type(known[name].default)) for name, value in chosen.items()}


def stage_texts(params: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that each stage of a pipeline with the arguments `values` gets, as YAML text."""
    return merge_params(dump_yaml(params), as_sections(values), values["overrides"], values["recipe"])


def _as_kind(value: Any, kind: type) -> Any:
    """A checked value in the type that Kubeflow takes: 0.001 of 1e-3, 5 of '5', true of yes."""
    if kind is bool and isinstance(value, str):
        return value.lower() in ("true", "yes", "on")
    return kind(value)


def _parameter(text: str, variant: str, known: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`, the value read as YAML and of the type that the pipeline takes."""
    name, separator, content = text.partition("=")
    offered = [key for key in known if key not in ("recipe", "overrides")]
    if not separator or name not in offered:
        raise ConfigError(
            f"--parameter {text}: the pipeline {variant} takes NAME=VALUE of {', '.join(offered)}; "
            "any other setting is --set SECTION.KEY=VALUE"
        )
    if name in CHOICES:
        return name, read_value(CHOICES[name].key, content, f"--parameter {name}")
    kind, value = type(known[name].default), parse_yaml(content, f"--parameter {name}")
    if kind is list and isinstance(value, list):
        value = [item if isinstance(item, str) else dump_yaml(item) for item in value]
    if type(value) is not kind:
        raise ConfigError(f"--parameter {text}: must be of type {kind.__name__}, like {known[name].default!r}")
    return name, value
