"""`mdpr pipeline submit`: start the compiled pipeline on a cluster, and follow it.

    mdpr pipeline submit --host http://localhost:8888 --set tune.epochs=5 --wait

The pipeline is uploaded once and becomes a new version whenever its YAML changes. Exit code 0 when the run
succeeded (or was started, without --wait), 1 when it failed, was cancelled or did not end in time, 2 for a
mistake: the host, the token, a parameter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import urllib3
from kfp_server_api import ApiException  # type: ignore[import-untyped]

from pipelines.api import Cluster, cluster_options, experiment_option, one_line_errors, upload
from pipelines.compile import package
from pipelines.settings import Request, request_options, site_option

LOST_POLLS = 12  # polls in a row that may go unanswered before the host counts as gone
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def follow(get_state: Callable[[], str | None], timeout_s: float, poll_s: float) -> str | None:
    """Ask for the state until it is one of `ENDED`, and return it; None when that takes over `timeout_s`.

    A poll that gets no answer is repeated, `LOST_POLLS` times in a row; then its error is raised.
    """
    deadline = time.monotonic() + timeout_s
    shown, lost = None, 0
    while time.monotonic() < deadline:
        try:
            state, lost = get_state(), 0
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            lost += 1
            if lost > LOST_POLLS or getattr(error, "status", None) in (401, 403, 404):
                raise
            state = shown
        if state != shown:
            click.echo(f"state: {state}")
            shown = state
        if state in ENDED:
            return state
        time.sleep(poll_s)
    return None


@click.command("submit")
@cluster_options()
@experiment_option
@click.option("--run-name", help="name of the run; default: the pipeline's name and the time")
@click.option("--wait", is_flag=True, help="Follow the run to its end.")
@click.option("--timeout-s", type=float, default=72 * 3600, show_default=True, help="for --wait")
@click.option("--poll-s", type=float, default=5.0, show_default=True, help="time between two questions, for --wait")
@site_option
@request_options
def command(
    cluster: Cluster,
    experiment: str,
    run_name: str | None,
    wait: bool,
    timeout_s: float,
    poll_s: float,
    site_file: Path | None,
    request: Request,
) -> None:
    """Start a pipeline on a cluster; the link to the run in the UI is printed."""
    with package(site_file, request.variant) as file, one_line_errors(cluster.host):
        client = cluster.connect()
        pipeline_id, version_id = upload(client, file, request.pipeline_name)
        run = client.run_pipeline(
            client.create_experiment(experiment).experiment_id,
            run_name or f"{request.pipeline_name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
            params=dict(request.arguments),
            pipeline_id=pipeline_id,
            version_id=version_id,
        )
        if not wait:
            return
        state = follow(lambda: client.get_run(run.run_id).state, timeout_s, poll_s)
    if state is None:
        raise click.ClickException(f"run {run.run_id} did not end in {timeout_s:.0f} s; it goes on")
    if state != "SUCCEEDED":
        raise click.ClickException(f"run {run.run_id} ended as {state}")
