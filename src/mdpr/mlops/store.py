"""The MLflow store that this process talks to: its address, bounded time-outs, and errors a user can act on.

The address is MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in the working folder where that is not set. MLflow
loads inside the functions; the only global setting is MLflow's own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mdpr.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///mlflow.db"

# MLflow waits up to 120 s a request and tries 7 times more: a server that is away would look like a hang.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # files of kilobytes
}


# MLflow's words for "this will never be accepted"; everything else may be another answer tomorrow.
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_PARAMETER_VALUE", "INVALID_STATE")


class Unreachable(TrackingError):
    """The store is away, busy or keeps us out: what it did not take can be sent again."""


@dataclass(frozen=True)
class Store:
    """A client and the address it talks to."""

    client: MlflowClient
    uri: str

    @property
    def file(self) -> Path | None:
        """The sqlite file, where the store is one."""
        return sqlite_file(self.uri)

    @property
    def address(self) -> str:
        """The store's name for comparisons: no user, no password, no relative path."""
        return f"sqlite:///{self.file.absolute()}" if self.file else without_login(self.uri)


def without_login(uri: str) -> str:
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri  # as it is: put together again, an address without a host loses slashes
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def connect() -> Store:
    """The MLflow store of this process; raises `TrackingError` where its address or its file is unusable.

    Bounds MLflow's time-outs and keeps it quiet (`DEFAULTS`), unless the user's environment says otherwise.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    file = sqlite_file(uri)
    if file and file.is_file():
        _check_sqlite(file)
    import mlflow

    for name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables..." is not the user's business
        logging.getLogger(name).setLevel(logging.WARNING)
    with translate_errors(uri), _alone(file):
        mlflow.set_tracking_uri(uri)  # MLflow resolves `models:/...` addresses by its own global setting
        return Store(mlflow.MlflowClient(tracking_uri=uri), uri)


@contextmanager
def _alone(file: Path | None) -> Iterator[None]:
    """Keep other processes of ours away while a client opens the sqlite store `file`, and makes its tables.

    MLflow takes no lock: of two that meet an empty store, one finds half of the other's tables and fails.
    """
    with ExitStack() as held:
        # The lock of the folder itself leaves no file behind. Where a file system has none, all is as without it.
        with suppress(OSError):
            if file:
                descriptor = os.open(file.absolute().parent, os.O_RDONLY)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's refusals into `TrackingError`: one line, the address without its password, the fix.

    Where trying again may help, it is `Unreachable`.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        refused = getattr(error, "error_code", None) in REFUSALS
        raise (TrackingError if refused else Unreachable)(explain(uri, str(error))) from error


def explain(uri: str, message: str) -> str:
    """What MLflow said about `uri` as one line that never shows a password."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "MLFLOW_TRACKING_URI is not an address: write http://HOST:PORT or sqlite:///FILE"
    store = f"MLflow at {without_login(uri)}"
    if parts.password:
        message = message.replace(parts.password, "***")
    # MLflow words HTTP failures in three ways: a status it does not retry, one it gave up on, no answer.
    status = re.search(r"failed with error code (\d{3})|too many (\d{3}) error responses", message)
    code = int(status[1] or status[2]) if status else None
    if code in (401, 403):
        return f"{store} refused ({code}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if code or message.startswith("API request to"):
        what = f"answered with status {code}" if code else "cannot be reached"
        return f"{store} {what}: start the server, or unset MLFLOW_TRACKING_URI to use {DEFAULT_URI}"
    return f"{store}: {' '.join(message.split())[:300] or 'failed without a message'}"


def _check_sqlite(file: Path) -> None:
    """Look into the file before MLflow does, which tries a damaged one ten times, for 100 s."""
    import sqlite3
    from contextlib import closing

    try:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"{file} is not an MLflow store ({error}): move it away and a new one is made") from None
