"""`mdpr tracking`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("tracking")
def command() -> None:
    """Publish to MLflow what it could not take while it was down."""


@command.command("publish")
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True)
def publish(params: Path) -> None:
    """Publish what waits in tracking.outbox to the store that it is for. Every later stage does so, too."""
    from mdpr.mlops.publishing import publish_outbox
    from mdpr.mlops.store import connect
    from mdpr.params import load_params

    outbox = load_params(params).tracking.outbox
    click.echo(f"items published: {publish_outbox(connect(), Path(outbox))} (from {outbox})")
