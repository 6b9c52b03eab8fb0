"""`mdpr tracking`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("tracking")
def command() -> None:
    """Deliver to MLflow what could not be delivered while it was away."""


@command.command("publish")
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True)
def publish_outbox(params: Path) -> None:
    """Send what waits in tracking.outbox to the store it was meant for. Every later stage does so too."""
    from mdpr.mlops.delivery import flush
    from mdpr.mlops.store import connect
    from mdpr.params import load_params

    tracking = load_params(params).tracking
    click.echo(f"delivered {flush(connect(), Path(tracking.outbox))} entries from {tracking.outbox}")
