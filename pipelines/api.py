"""The Kubeflow Pipelines API: connecting, uploading, and errors in one line."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import kfp
import urllib3
from kfp_server_api import ApiException  # type: ignore[import-untyped]

from mdpr.errors import ConfigError, MdprError

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Cluster:
    """Address of the API, and the user's login and namespace there."""

    host: str
    token: str | None = field(repr=False)
    namespace: str

    def connect(self) -> kfp.Client:
        """A client whose every request ends in `REQUEST_TIMEOUT_S`; raises `MdprError` for an unusable host."""
        return _connect(self.host, self.token, self.namespace)


def cluster_options(*, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--host, --token and --namespace, as one argument `cluster`; None where no host is required and none is given."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*, host: str | None, token: str | None, namespace: str, **rest: Any) -> None:
            function(cluster=Cluster(host, token, namespace) if host else None, **rest)

        for option in (
            click.option("--namespace", default="kubeflow", show_default=True, help="of the user, on a shared cluster"),
            click.option("--token", envvar="KFP_TOKEN", help="bearer token; better in the variable KFP_TOKEN"),
            click.option("--host", required=required, help="address of the Kubeflow Pipelines API"),
        ):
            command = option(command)
        return command

    return decorate


experiment_option = click.option("--experiment", default="mdpr", show_default=True, help="Kubeflow experiment")


def _connect(host: str, token: str | None, namespace: str) -> kfp.Client:
    # The host is asked once before kfp's client is made, which would try for a long time.
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
    hints[409] = "something of this name is there already: choose another name"
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
