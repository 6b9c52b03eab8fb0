"""`mdpr serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mdpr.mlops.served_model import DEFAULT_HOST, DEFAULT_PORT, DEFAULT_TIMEOUT_S


@click.command("serve")
@click.option("--alias", default="champion", show_default=True, help="which version of tracking.model_name to serve")
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="0.0.0.0 to be reached from elsewhere")
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="processes, a model in each")
@click.option("--timeout-s", type=click.IntRange(min=1), default=DEFAULT_TIMEOUT_S, show_default=True)
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True)
def command(alias: str, host: str, port: int, workers: int, timeout_s: int, params: Path) -> None:
    """Serve the champion over HTTP, in the protocol of MLflow: POST images to /invocations."""
    from mdpr.mlops.served_model import find_version, serve_command, serve_environment
    from mdpr.params import load_params

    tracking = load_params(params).tracking
    version = find_version(tracking.model_name, alias)
    click.echo(f"serving version {version} of {tracking.model_name} at http://{host}:{port}/invocations", err=True)
    arguments = serve_command(tracking.model_name, version, host=host, port=port, workers=workers, timeout_s=timeout_s)
    # The server takes this process's place: signals and the exit code are its own.
    os.execve(sys.executable, arguments, serve_environment(os.environ, workers))  # noqa: S606 - no shell
