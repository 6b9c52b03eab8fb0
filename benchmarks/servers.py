"""A server on loopback for as long as a benchmark needs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import requests

from mdpr.project import environment as with_scripts

START_TIMEOUT_S = 180


class Server(NamedTuple):
    address: str
    pid: int


@contextmanager
def running(command: Sequence[str], health: str, folder: Path) -> Iterator[Server]:
    """A server on loopback, by a command of python that takes --port; yields once it is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    with (folder / f"server-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**with_scripts(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not is_up(address + health):
            assert process.poll() is None, Path(log.name).read_text(encoding="utf-8")
            assert time.monotonic() < deadline_s, "the server does not come up"
            time.sleep(0.05)
        yield Server(address, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def is_up(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False
