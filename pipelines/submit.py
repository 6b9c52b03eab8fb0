"""Start the compiled pipeline on a cluster, and follow it.

    python -m pipelines.submit --host http://localhost:8888 --set tune.epochs=5 --wait

The pipeline is uploaded once and becomes a new version whenever its YAML changes. Exit code 0 when the run
succeeded (or was started, without --wait), 1 when it failed, was cancelled or did not end in time, 2 for a
mistake: the host, the token, a parameter.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import kfp
import urllib3
from kfp_server_api import ApiException  # type: ignore[import-untyped]

from mdpr.errors import ConfigError, MdprError
from pipelines.command import Command, overrides_text, set_option
from pipelines.training import COMPILED, NAME, is_current, read_params

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 30.0
LOST_POLLS = 12  # polls in a row that may go unanswered before the host counts as gone
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def connect(host: str, token: str | None, namespace: str) -> kfp.Client:
    """A client whose every request ends in `REQUEST_TIMEOUT_S`; raises `MdprError` for an unusable host.

    The host is asked once before kfp's client is made, which would try for a long time.
    """
    if not host.startswith(("http://", "https://")):
        raise ConfigError(f"--host {host} must start with http:// or https://")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    pool = urllib3.PoolManager(retries=False, timeout=CONNECT_TIMEOUT_S, headers=headers)
    answer = pool.request("GET", f"{host.rstrip('/')}/apis/v2beta1/healthz", redirect=False)
    if answer.status != 200:
        raise MdprError(_refusal(host, answer.status))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on the age of the server
        client = kfp.Client(host=host, existing_token=token, namespace=namespace)
    _bound_requests(client._run_api.api_client.rest_client)  # kfp has no public place for a time-out
    return client


def _bound_requests(rest_client: Any) -> None:
    request = rest_client.request

    def bounded(*args: Any, _request_timeout: float | None = None, **kwargs: Any) -> Any:
        return request(*args, _request_timeout=_request_timeout or REQUEST_TIMEOUT_S, **kwargs)

    rest_client.request = bounded


@contextmanager
def one_line_errors(host: str) -> Iterator[None]:
    """What the server or the network said as one `MdprError`."""
    try:
        yield
    except ApiException as error:
        raise MdprError(_refusal(host, error.status)) from None
    except (urllib3.exceptions.HTTPError, TimeoutError) as error:
        reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2]
        raise MdprError(f"{host} does not answer ({reason}): check --host") from None


def _refusal(host: str, status: int) -> str:
    login = "log in and pass --token"
    hints = {302: login, 401: login, 403: "check --namespace and the rights of the token"}
    return f"{host} answered with status {status}: {hints.get(status, 'see the log of the ml-pipeline service')}"


def upload(client: kfp.Client, package: Path, name: str) -> tuple[str, str]:
    """Identifiers of the pipeline and of its version that holds `package`, uploaded where missing."""
    version = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
    pipeline_id = client.get_pipeline_id(name)
    if pipeline_id is None:
        pipeline_id = client.upload_pipeline(str(package), pipeline_name=name).pipeline_id
    known = client.list_pipeline_versions(pipeline_id, page_size=100).pipeline_versions or []
    for item in known:
        if item.display_name == version:
            return pipeline_id, item.pipeline_version_id
    uploaded = client.upload_pipeline_version(str(package), version, pipeline_id=pipeline_id)
    return pipeline_id, uploaded.pipeline_version_id


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


@click.command(cls=Command)
@click.option("--host", required=True, help="address of the Kubeflow Pipelines API")
@click.option("--token", envvar="KFP_TOKEN", help="bearer token; better in the variable KFP_TOKEN")
@click.option("--namespace", default="kubeflow", show_default=True, help="of the user, on a shared cluster")
@click.option("--experiment", default="mdpr", show_default=True, help="Kubeflow experiment")
@click.option("--run-name", help="name of the run; default: the pipeline's name and the time")
@click.option("--wait", is_flag=True, help="Follow the run to its end.")
@click.option("--timeout-s", type=float, default=72 * 3600, show_default=True, help="for --wait")
@click.option("--poll-s", type=float, default=5.0, show_default=True, help="time between two questions, for --wait")
@set_option
def main(
    host: str,
    token: str | None,
    namespace: str,
    experiment: str,
    run_name: str | None,
    wait: bool,
    timeout_s: float,
    poll_s: float,
    settings: tuple[str, ...],
) -> None:
    """Start the training pipeline on a cluster."""
    overrides = overrides_text(read_params(), settings)
    if not is_current(COMPILED):
        raise ConfigError(f"{COMPILED.name} is stale: run python -m pipelines.training, then submit again")
    with one_line_errors(host):
        client = connect(host, token, namespace)
        pipeline_id, version_id = upload(client, COMPILED, NAME)
        run = client.run_pipeline(
            client.create_experiment(experiment).experiment_id,
            run_name or f"{NAME} {time.strftime('%Y-%m-%d %H:%M:%S')}",
            params={"overrides": overrides},
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


if __name__ == "__main__":
    main()
