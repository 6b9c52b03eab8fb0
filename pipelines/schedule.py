"""`mdpr pipeline schedule`: runs of the compiled pipeline again and again, started by the cluster.

mdpr pipeline schedule --host http://localhost:8888 --cron "0 3 * * 1" --set prepare.root=/data/new
"""

from __future__ import annotations

from pathlib import Path

import click

from mdpr.errors import ConfigError
from pipelines.api import Cluster, cluster_options, experiment_option, one_line_errors, upload
from pipelines.compile import package
from pipelines.settings import Request, request_options, site_option

CRON_FIELDS = (5, 6)


def with_seconds(cron: str) -> str:
    """The six fields that Kubeflow reads, from the usual five or from six; raises `ConfigError`."""
    fields = cron.split()
    if len(fields) not in CRON_FIELDS:
        raise ConfigError(f"--cron {cron!r} has {len(fields)} fields: write minute hour day month weekday, '0 3 * * 1'")
    return " ".join(fields if len(fields) == max(CRON_FIELDS) else ["0", *fields])


@click.command("schedule")
@cluster_options()
@experiment_option
@click.option("--cron", required=True, help="minute hour day month weekday, in the cluster's time zone")
@click.option("--name", help="name of the schedule; default: the pipeline's name")
@click.option("--catch-up", is_flag=True, help="Start the runs that were missed while the schedule was paused, too.")
@site_option
@request_options
def command(
    cluster: Cluster,
    experiment: str,
    cron: str,
    name: str | None,
    catch_up: bool,
    site_file: Path | None,
    request: Request,
) -> None:
    """Start a pipeline on a cluster again and again; a run waits until the one before it has ended."""
    expression = with_seconds(cron)
    with package(site_file, request.variant) as file, one_line_errors(cluster.host):
        client = cluster.connect()
        pipeline_id, version_id = upload(client, file, request.pipeline_name)
        schedule = client.create_recurring_run(
            client.create_experiment(experiment).experiment_id,
            name or request.pipeline_name,
            cron_expression=expression,
            max_concurrency=1,
            no_catchup=not catch_up,
            params=dict(request.arguments),
            pipeline_id=pipeline_id,
            version_id=version_id,
        )
    click.echo(f"schedule {schedule.recurring_run_id}: {expression}")
