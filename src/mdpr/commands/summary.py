"""`mdpr summary`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("summary")
@click.option("--evaluation", type=click.Path(path_type=Path), default=Path("data/evaluation"), show_default=True)
@click.option("--promotion", type=click.Path(path_type=Path), default=Path("data/promotion.json"), show_default=True)
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True)
def command(evaluation: Path, promotion: Path, params: Path) -> None:
    """Show the scores, the champion in the MLflow registry, the gate's decision and the report's path."""
    from rich.console import Console

    from mdpr.params import load_params
    from mdpr.summary import read_summary, render

    tracking = load_params(params).tracking
    Console().print(render(read_summary(evaluation, promotion, tracking)))
