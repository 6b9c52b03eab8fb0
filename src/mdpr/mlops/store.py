"""The MLflow store of this process: its address, bounded waiting, and errors that a user can act on.

The address is MLFLOW_TRACKING_URI, or sqlite:///mlflow.db if that is not set; a relative file lies in the project,
even if DVC runs an experiment in a temporary copy of it. Every call of
`Store.client` ends within a bounded time and raises only `TrackingError`: `Unreachable` if the same call may succeed
later, `Refused` if this request never will. MLflow loads inside the functions; the only global setting is MLflow's own.
"""

from __future__ import annotations

import contextvars
import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from mdpr.errors import MdprError, TrackingError
from mdpr.launch import in_project

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///mlflow.db"

# MLflow waits up to 120 s per request and tries 7 times more: a server that is down would look like a hang.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # files of kilobytes
}
HTTP_LIMITS = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
BACKOFF_S = 10.0  # what MLflow's pauses between its tries add up to
CHECK_LIMIT_S = 15.0  # for the first request, unless the user has set one of `HTTP_LIMITS`
TRANSFER_LIMIT_S = 900.0  # a call that moves files
TRANSFERS = ("log_artifact", "log_artifacts", "log_dict", "log_model_artifacts", "download_artifacts")
NO_ANSWER = "no whole answer"
LOCK_WAIT_S = 15.0  # for another process that holds the sqlite file; MLflow waits about 30 s per write

# MLflow's codes for "this request will never be accepted", and for "not with this login".
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
LOGIN_STATUS = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
# An MLflow server answers 404 and RESOURCE_DOES_NOT_EXIST for an experiment that nobody has made.
UNKNOWN_EXPERIMENT = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=mdpr-is-this-an-mlflow-server"


class StoreError(TrackingError):
    """MLflow did not do what it was called for; `code` is its own error code, if it gave one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(StoreError):
    """The store is down, slow, busy or locked: the same call may succeed later."""


class Refused(StoreError):
    """The store works and will not accept this request, now or later."""


@dataclass(frozen=True)
class Store:
    """A client (see `BoundedClient`) and the address it talks to."""

    client: MlflowClient
    uri: str

    @property
    def file(self) -> Path | None:
        """The sqlite file, if the store is one."""
        return sqlite_file(self.uri)

    @property
    def address(self) -> str:
        return store_address(self.uri)

    def check(self) -> None:
        """Raise `TrackingError` unless the store answers as MLflow does."""
        if is_http(self.uri):
            _check_server(self.uri)
        elif self.file:
            _check_sqlite(self.file)


class BoundedClient:
    """MLflow's client with every error translated, and every call over HTTP ended after a bounded time.

    MLflow's own time-out is per read: an answer of a byte per second would never end.
    """

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return partial(self._call, name, found) if callable(found) else found

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with translate_errors(self._uri):
            if not is_http(self._uri):
                return method(*arguments, **options)
            limit_s = TRANSFER_LIMIT_S if name in TRANSFERS else answer_limit_s()
            return within(limit_s, partial(method, *arguments, **options))


def connect() -> Store:
    """The MLflow store of this process; raises `TrackingError` if it does not answer or is no MLflow store.

    Bounds MLflow's time-outs and its messages (`DEFAULTS`), unless the user's environment sets them.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    uri = tracking_uri()
    file = sqlite_file(uri)
    if file and file.exists():
        _check_sqlite(file)
    import mlflow

    for name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables..." is not the user's business
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of what `translate_errors` says
    if is_http(uri):
        _check_server(uri)
    with translate_errors(uri), exclusive(file):
        mlflow.set_tracking_uri(uri)  # MLflow resolves `models:/...` addresses by its own global setting
        client = BoundedClient(mlflow.MlflowClient(tracking_uri=uri), uri)
        return Store(cast("MlflowClient", client), uri)


def tracking_uri() -> str:
    """The address of this process's store; a sqlite file lies in the project."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    file = sqlite_file(uri)
    return f"sqlite:///{in_project(file)}" if file else uri


def store_address(uri: str) -> str:
    """The store's name for comparisons: no user, no password, no relative path."""
    file = sqlite_file(uri)
    return f"sqlite:///{file.absolute()}" if file else without_login(uri)


def without_login(uri: str) -> str:
    """`uri` without user and password; raises `TrackingError` if it is no address."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise TrackingError(explain(uri, "")) from None
    if "@" not in parts.netloc:
        return uri  # as it is: put together again, an address without a host loses slashes
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite address, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def is_http(uri: str) -> bool:
    """Whether the store is a server."""
    return uri.startswith(("http://", "https://"))


def answer_limit_s() -> float:
    """Seconds that all of MLflow's tries of one request may take together."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    return float(MLFLOW_HTTP_REQUEST_TIMEOUT.get() * (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() + 1) + BACKOFF_S)


def within(limit_s: float, call: Callable[[], Any]) -> Any:
    """The result of `call`; raises `TimeoutError` if it takes longer (its thread is left behind) and what it raises."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join(limit_s)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"{NO_ANSWER} within {limit_s:.0f} s")
    return outcome["value"]


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into `TrackingError`: one line, the address without its password, the fix.

    Over HTTP every exception is translated: MLflow's client fails in many ways at an unexpected answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        code = getattr(error, "error_code", None)
        kind: type[StoreError] = Refused if code in REFUSALS else Unreachable
        status = LOGIN_STATUS.get(code or "") or _http_status(str(error))
        if status in (401, 403):
            kind = StoreError
        raise kind(explain(uri, str(error), status), code) from error
    except MdprError:
        raise
    except Exception as error:
        if not is_http(uri):
            raise
        raise StoreError(not_mlflow(uri, f"{type(error).__name__} while its answer was read")) from error


def explain(uri: str, message: str, status: int | None = None) -> str:
    """MLflow's `message` about the store at `uri` as one line that never shows a password."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "MLFLOW_TRACKING_URI is not an address: write http://HOST:PORT or sqlite:///FILE"
    store = f"MLflow at {without_login(uri)}"
    for secret in filter(None, (parts.password, os.environ.get("MLFLOW_TRACKING_PASSWORD"))):
        message = message.replace(secret, "***")
    status = status or _http_status(message)
    if status in (401, 403):
        return f"{store} refused ({status}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    fix = f"start the server, or unset MLFLOW_TRACKING_URI to use {DEFAULT_URI}"
    if status:
        return f"{store} answered with status {status}: {fix}"
    if message.startswith("API request to"):
        return f"{store} cannot be reached: {fix}"
    if message.startswith(NO_ANSWER):
        return f"{store} gives {message}: {fix}"
    if "database is locked" in message:
        return f"{store} is locked by another process: let it finish"
    return f"{store}: {' '.join(message.split())[:300] or 'failed without a message'}"


def _http_status(message: str) -> int | None:
    """MLflow words HTTP failures in three ways: a status it does not retry, one it gave up on, no answer."""
    found = re.search(r"failed with error code (\d{3})|too many (\d{3}) error responses", message)
    return int(found[1] or found[2]) if found else None


def _check_server(uri: str) -> None:
    """One request that only an MLflow server answers in the right way.

    MLflow's client takes any JSON for an answer: with `{}` it would "create" runs without an id.
    """
    import json

    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    request = partial(http_request, get_default_host_creds(uri), UNKNOWN_EXPERIMENT, "GET", raise_on_status=False)
    own_limits = any(os.environ.get(name) != DEFAULTS[name] for name in HTTP_LIMITS)
    with translate_errors(uri):
        answer = within(answer_limit_s() if own_limits else CHECK_LIMIT_S, request)
    if answer.status_code in (401, 403):
        raise StoreError(explain(uri, "", answer.status_code))
    if answer.status_code == 429 or answer.status_code >= 500:
        raise Unreachable(explain(uri, "", answer.status_code))
    try:
        content = json.loads(answer.text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("error_code") != "RESOURCE_DOES_NOT_EXIST":
        raise StoreError(not_mlflow(uri, f"status {answer.status_code}"))


def not_mlflow(uri: str, reason: str) -> str:
    """One line about an address that something else answers at."""
    return f"{without_login(uri)} does not answer as an MLflow server does ({reason}): mend MLFLOW_TRACKING_URI"


def _check_sqlite(file: Path) -> None:
    """Open the file before MLflow does, which tries a damaged one ten times, for 100 s. Waits for a lock."""
    import sqlite3
    from contextlib import closing

    if not file.is_file():
        raise TrackingError(f"{file} is not a file: mend MLFLOW_TRACKING_URI")
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_WAIT_S)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        raise Unreachable(explain(f"sqlite:///{file}", str(error))) from None
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"{file} is not an MLflow store ({error}): move it away and a new one is made") from None


@contextmanager
def exclusive(file: Path | None) -> Iterator[None]:
    """Hold off other processes of ours while a client opens the sqlite store `file` and makes its tables, or a run.

    MLflow takes no lock: of two that meet an empty store, one finds half of the other's tables and fails. A server
    (None) offers no lock.
    """
    with ExitStack() as held:
        # The lock of the folder itself leaves no file behind. On a file system without locks, all is as without it.
        with suppress(OSError):
            if file:
                descriptor = os.open(file.absolute().parent, os.O_RDONLY)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
