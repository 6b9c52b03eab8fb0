"""`mdpr registry`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group("registry")
def command() -> None:
    """Look into the MLflow model registry."""


@command.command("list")
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print a JSON array and nothing else")
def list_versions(params: Path, as_json: bool) -> None:
    """Every version of tracking.model_name: aliases, test figures, and what the gate said."""
    from rich.console import Console

    from mdpr.mlops.listing import registry_rows, registry_table
    from mdpr.mlops.registry import Registry
    from mdpr.mlops.store import connect
    from mdpr.params import load_params

    tracking = load_params(params).tracking
    rows = registry_rows(Registry(connect(), tracking.model_name))
    if as_json:
        click.echo(json.dumps(rows))
    else:
        Console().print(registry_table(tracking.model_name, rows))
