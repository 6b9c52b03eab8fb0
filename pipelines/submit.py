"""`mdpr pipeline submit` and `mdpr pipeline schedule`: runs of a compiled pipeline on a cluster.

    mdpr pipeline submit --host http://localhost:8888 --set tune.epochs=5 --wait
    mdpr pipeline schedule --host http://localhost:8888 --cron "0 3 * * 1" --set prepare.root=/data/new

The pipeline is uploaded once and becomes a new version whenever its YAML changes. Exit code 0 if the run succeeded (or
was started, without --wait), 1 if it failed, was cancelled or did not end in time, 2 for a mistake: the host, the
login, a parameter.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import click
import kfp
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH, ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException, V2beta1Pipeline  # type: ignore[import-untyped]

from mdpr.errors import ConfigError, MdprError
from pipelines.cluster import read_profile
from pipelines.compile import package
from pipelines.nodes import check_batch
from pipelines.options import Request, cluster_option, read_params, request_options, stage_texts

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 30.0
PAGE_SIZE = 200  # the most that the API gives at once
LOST_POLLS = 12  # polls in a row that may go unanswered before the host counts as gone
OLDEST = (2, 15)  # the first with a volume of the run and with optional secrets
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


# --- the API ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connection:
    """Address of the Kubeflow Pipelines API, and the user's login and namespace there."""

    host: str
    token: str | None = field(repr=False)
    cookies: str | None = field(repr=False)
    ca_file: str | None
    namespace: str | None

    def connect(self) -> Api:
        """The API, whose every request ends in `REQUEST_TIMEOUT_S`.

        Raises `ConfigError` for an address that is none and for a namespace that is missing, `MdprError` if the host
        refuses or is older than `OLDEST`.
        """
        # One request before kfp's client is made, which would try for a long time.
        if not self.host.startswith(("http://", "https://")):
            raise ConfigError(f"--host {self.host} must start with http:// or https://")
        if self.ca_file and not Path(self.ca_file).is_file():
            raise ConfigError(f"--ca-file {self.ca_file} does not exist: name the file with the certificates")
        account = self._service_account()
        token = self.token or (account and Path(account).read_text("utf-8").strip())
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if self.cookies:
            headers["Cookie"] = self.cookies
        pool = urllib3.PoolManager(retries=False, timeout=CONNECT_TIMEOUT_S, headers=headers, ca_certs=self.ca_file)
        answer = pool.request("GET", f"{self.host.rstrip('/')}/apis/v2beta1/healthz", redirect=False)
        if answer.status != 200:
            raise MdprError(refusal(self.host, answer.status, answer.data))
        shared = _read_healthz(self.host, answer.data)
        if shared and not self.namespace:
            raise ConfigError(f"{self.host} is shared by several users: name your --namespace")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on the age of the server
            client = kfp.Client(
                host=self.host,
                existing_token=self.token,
                credentials=ServiceAccountTokenVolumeCredentials(account) if account else None,
                cookies=self.cookies,
                ssl_ca_cert=self.ca_file,
            )
        _bound_requests(client._run_api.api_client.rest_client)  # kfp has no public place for a time-out
        return Api(client, self.namespace if shared else None)

    def _service_account(self) -> str | None:
        """The file with the token of the pod's own account, if this is a pod and there is no other login."""
        path = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH)
        return path if not self.token and not self.cookies and Path(path).is_file() else None


def _read_healthz(host: str, answer: bytes) -> bool:
    """Whether several users share the cluster; raises `MdprError` for another service, or for a backend too old."""
    try:
        content = json.loads(answer)
        shared = bool(content.get("multi_user"))
    except (ValueError, AttributeError):
        raise MdprError("the answer is not that of Kubeflow Pipelines: check --host, and log in") from None
    # The first name is the API server's, the second that of the UI in front of it.
    tag = str(content.get("tag_name") or content.get("apiServerTagName") or "")
    version = re.match(r"v?(\d+)\.(\d+)", tag)  # a build from source has none
    if version and tuple(map(int, version.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MdprError(f"{host} is Kubeflow Pipelines {tag}: the pipelines need {oldest} or later")
    return shared


def _bound_requests(rest_client: Any) -> None:
    request = rest_client.request

    def bounded(*args: Any, _request_timeout: float | None = None, **kwargs: Any) -> Any:
        return request(*args, _request_timeout=_request_timeout or REQUEST_TIMEOUT_S, **kwargs)

    rest_client.request = bounded


@dataclass(frozen=True)
class Api:
    """The API of a cluster. `namespace`: of the user, which every request names; None if the cluster has one user."""

    client: kfp.Client
    namespace: str | None

    def upload(self, file: Path, name: str) -> tuple[str, str]:
        """Identifiers of the pipeline `name` and of its version that holds `file`; what is missing is made."""
        version = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        pipeline_id = self._pipeline(name)
        versions = functools.partial(self.client.list_pipeline_versions, pipeline_id)
        for item in all_pages(versions, "pipeline_versions"):
            if item.display_name == version:
                return pipeline_id, item.pipeline_version_id
        uploaded = self.client.upload_pipeline_version(str(file), version, pipeline_id=pipeline_id)
        return pipeline_id, uploaded.pipeline_version_id

    def _pipeline(self, name: str) -> str:
        """The pipeline of this unique name; several may share a display name."""
        found = {}
        for item in all_pages(functools.partial(self.client.list_pipelines, namespace=self.namespace), "pipelines"):
            found[item.name or item.display_name] = item.pipeline_id
        if name in found:
            return str(found[name])
        made = self.client._pipelines_api.pipeline_service_create_pipeline(
            V2beta1Pipeline(name=name, display_name=name, namespace=self.namespace)
        )
        return str(made.pipeline_id)

    def experiment(self, name: str) -> str:
        """Identifier of an experiment, made if it is missing."""
        return str(self.client.create_experiment(name, namespace=self.namespace).experiment_id)


def all_pages(listing: Callable[..., Any], kind: str) -> Iterator[Any]:
    """Everything that a listing of the API holds, page after page, the newest first."""
    token = ""
    while True:
        page = listing(page_token=token, page_size=PAGE_SIZE, sort_by="created_at desc")
        yield from getattr(page, kind) or ()
        token = page.next_page_token
        if not token:
            return


@contextmanager
def translate_errors(host: str) -> Iterator[None]:
    """An error of the server or the network as one `MdprError`."""
    try:
        yield
    except ApiException as error:
        raise MdprError(refusal(host, error.status, error.body)) from None
    except (urllib3.exceptions.HTTPError, TimeoutError) as error:
        reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2]
        option = "--ca-file" if "certificate" in reason else "--host"
        raise MdprError(f"{host} does not answer ({reason}): check {option}") from None


def refusal(host: str, status: int, body: bytes | str | None) -> str:
    """One line on an answer that is an error: its status, the server's own words, a hint."""
    login = "log in and pass --token or --cookies"
    hints = {302: login, 401: login, 403: "check --namespace and the rights of the login"}
    hints[409] = "something of this name is there already: choose another name"
    words = _words(body)
    hint = hints.get(status, "see the log of the ml-pipeline service")
    return f"{host} answered with status {status}{f' ({words})' if words else ''}: {hint}"


def _words(body: bytes | str | None) -> str:
    """The message in an answer of the API; nothing of a page for browsers."""
    try:
        content = json.loads(body or "{}")
    except ValueError:
        return ""
    keys = ("message", "error_message", "error_details", "error")
    message = next((content[key] for key in keys if isinstance(content, dict) and content.get(key)), "")
    return " ".join("".join(c if c.isprintable() else " " for c in str(message)).split())[:300]


def connection_options(*, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--host, login and --namespace, as one argument `connection`; None if no host is required and none is given."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**options: Any) -> None:
            login = {item.name: options.pop(item.name) for item in fields(Connection)}
            function(connection=Connection(**login) if login["host"] else None, **options)

        for option in (
            click.option("--namespace", help="of the user; needed on a cluster that several users share"),
            click.option("--ca-file", help="certificates to trust, PEM"),
            click.option("--cookies", envvar="KFP_COOKIES", help="of a session; better in the variable KFP_COOKIES"),
            click.option("--token", envvar="KFP_TOKEN", help="bearer token; better in the variable KFP_TOKEN"),
            click.option("--host", required=required, help="address of the Kubeflow Pipelines API"),
        ):
            command = option(command)
        return command

    return decorate


# --- the commands -------------------------------------------------------------------------------------------


def start_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that starts runs; the command takes a connected `Api` and what goes into a run."""

    @functools.wraps(function)
    def command(
        *,
        connection: Connection,
        experiment: str,
        profile_file: Path | None,
        pipeline_root: str | None,
        service_account: str | None,
        request: Request,
        **rest: Any,
    ) -> None:
        profile = read_profile(profile_file)
        check_batch(stage_texts(read_params(), request.arguments)["tune"], profile.nodes, profile)
        with package(profile, request.variant) as file, translate_errors(connection.host):
            api = connection.connect()
            pipeline_id, version_id = api.upload(file, request.pipeline_name)
            run = {
                "experiment_id": api.experiment(experiment),
                "params": dict(request.arguments),
                "pipeline_id": pipeline_id,
                "version_id": version_id,
                "pipeline_root": pipeline_root or profile.pipeline_root or None,
                "service_account": service_account or profile.service_account or None,
            }
            function(connection=connection, api=api, run=run, pipeline_name=request.pipeline_name, **rest)

    options: tuple[Callable[[Callable[..., None]], Callable[..., None]], ...] = (
        request_options,
        click.option("--service-account", help="account of the pods; default: the profile's"),
        click.option("--pipeline-root", help="address that the run writes below; default: the profile's"),
        cluster_option,
        click.option("--experiment", default="mdpr", show_default=True, help="Kubeflow experiment"),
        connection_options(),
    )
    wrapped: Callable[..., None] = command
    for option in options:
        wrapped = option(wrapped)
    return wrapped


def follow(get_state: Callable[[], str | None], timeout_s: float, poll_s: float) -> str | None:
    """Read the state until it is one of `ENDED`, and return it; None if that takes over `timeout_s`.

    A poll without an answer is repeated, `LOST_POLLS` times in a row; then its error is raised.
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
@start_options
@click.option("--run-name", help="name of the run; default: the pipeline's name and the time")
@click.option("--wait", is_flag=True, help="Follow the run to its end.")
@click.option("--timeout-s", type=float, default=72 * 3600, show_default=True, help="for --wait")
@click.option("--poll-s", type=float, default=5.0, show_default=True, help="time between two questions, for --wait")
def submit_command(
    connection: Connection,
    api: Api,
    run: dict[str, Any],
    pipeline_name: str,
    run_name: str | None,
    wait: bool,
    timeout_s: float,
    poll_s: float,
) -> None:
    """Start a pipeline on a cluster; the link to the run in the UI is printed."""
    name = run_name or f"{pipeline_name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    run_id = api.client.run_pipeline(job_name=name, **run).run_id
    if not wait:
        return
    try:
        with translate_errors(connection.host):
            state = follow(lambda: api.client.get_run(run_id).state, timeout_s, poll_s)
    except MdprError as error:
        link = f"{connection.host.rstrip('/')}/#/runs/details/{run_id}"
        raise MdprError(f"{error}; the run goes on: follow it at {link}") from None
    if state is None:
        raise click.ClickException(f"run {run_id} did not end in {timeout_s:.0f} s; it goes on")
    if state != "SUCCEEDED":
        raise click.ClickException(f"run {run_id} ended as {state}")


def with_seconds(context: click.Context, option: click.Parameter, cron: str) -> str:
    """The six fields that Kubeflow reads, from the usual five or from six; raises `ConfigError`."""
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise ConfigError(f"--cron {cron!r} has {len(fields)} fields: write minute hour day month weekday, '0 3 * * 1'")
    return " ".join(["0", *fields][-6:])


@click.command("schedule")
@start_options
@click.option(
    "--cron", required=True, callback=with_seconds, help="minute hour day month weekday, in the cluster's time zone"
)
@click.option("--name", help="name of the schedule; default: the pipeline's name")
@click.option("--catch-up", is_flag=True, help="Start the runs that were missed while the schedule was paused, too.")
def schedule_command(
    connection: Connection,
    api: Api,
    run: dict[str, Any],
    pipeline_name: str,
    cron: str,
    name: str | None,
    catch_up: bool,
) -> None:
    """Start a pipeline on a cluster again and again; a run waits until the one before it has ended."""
    schedule = api.client.create_recurring_run(
        job_name=name or pipeline_name, cron_expression=cron, max_concurrency=1, no_catchup=not catch_up, **run
    )
    click.echo(f"schedule {schedule.recurring_run_id}: {cron}")
