"""`mdpr pipeline schedule`: runs of the compiled pipeline again and again, started by the cluster.

mdpr pipeline schedule --host http://localhost:8888 --cron "0 3 * * 1" --set prepare.root=/data/new
"""

from __future__ import annotations

from pathlib import Path

import click

from mdpr.errors import ConfigError
from pipelines.api import connect, host_options, one_line_errors, upload
from pipelines.compile import package
from pipelines.settings import arguments, read_params, recipe_option, set_option, site_option
from pipelines.training import NAME

CRON_FIELDS = (5, 6)


def with_seconds(cron: str) -> str:
    """The six fields that Kubeflow reads, from the usual five or from six; raises `ConfigError`."""
    fields = cron.split()
    if len(fields) not in CRON_FIELDS:
        raise ConfigError(f"--cron {cron!r} has {len(fields)} fields: write minute hour day month weekday, '0 3 * * 1'")
    return " ".join(fields if len(fields) == max(CRON_FIELDS) else ["0", *fields])


@click.command("schedule")
@host_options
@click.option("--cron", required=True, help="minute hour day month weekday, in the cluster's time zone")
@click.option("--name", default=NAME, show_default=True, help="name of the schedule")
@click.option("--catch-up", is_flag=True, help="Start the runs that were missed while the schedule was paused, too.")
@site_option
@recipe_option
@set_option
def command(
    host: str,
    token: str | None,
    namespace: str,
    experiment: str,
    cron: str,
    name: str,
    catch_up: bool,
    site_file: Path | None,
    recipe: str,
    settings: tuple[str, ...],
) -> None:
    """Start the training pipeline on a cluster again and again; a run waits until the one before it has ended."""
    values = arguments(read_params(), recipe, settings)
    expression = with_seconds(cron)
    with package(site_file) as file, one_line_errors(host):
        client = connect(host, token, namespace)
        pipeline_id, version_id = upload(client, file, NAME)
        schedule = client.create_recurring_run(
            client.create_experiment(experiment).experiment_id,
            name,
            cron_expression=expression,
            max_concurrency=1,
            no_catchup=not catch_up,
            params=values,
            pipeline_id=pipeline_id,
            version_id=version_id,
        )
    click.echo(f"schedule {schedule.recurring_run_id}: {expression}")
