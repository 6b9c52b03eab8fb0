"""submit against a loopback server that plays a Kubeflow Pipelines API: the real client, real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result
from pipelines import submit

API = "/apis/v2beta1"
VERSION = {"pipeline_id": "p1", "pipeline_version_id": "v1", "display_name": "first"}


class Api(ThreadingHTTPServer):
    """Answers what the client asks, plays `states` one a poll, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self, states: list[str], refuse: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states, self.refuse = states, refuse
        self.requests: list[tuple[str, str]] = []
        self.runs: list[dict[str, Any]] = []
        self.versions: list[dict[str, str]] = []

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> dict[str, Any] | None:
        if (method, path) == ("POST", "/pipelines/upload"):
            assert b"mdpr-training" in body
            return {"pipeline_id": "p1", "display_name": query["name"][0]}
        if (method, path) == ("POST", "/pipelines/upload_version"):
            self.versions.append({**VERSION, "display_name": query["name"][0]})
            return self.versions[-1]
        if (method, path) == ("POST", "/runs"):
            self.runs.append(json.loads(body))
            return {"run_id": "r1"}
        if (method, path) == ("GET", "/runs/r1"):
            return {"run_id": "r1", "state": self.states.pop(0) if len(self.states) > 1 else self.states[0]}
        fixed: dict[tuple[str, str], dict[str, Any]] = {
            ("GET", "/healthz"): {"multi_user": False},
            ("GET", "/pipelines"): {"pipelines": [{"pipeline_id": "p1"}]} if self.versions else {},
            ("GET", "/pipelines/p1/versions"): {"pipeline_versions": self.versions},
            ("GET", "/experiments"): {},
            ("POST", "/experiments"): {"experiment_id": "e1"},
        }
        return fixed.get((method, path))


class Handler(BaseHTTPRequestHandler):
    server: Api

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, parts.path))
        answer = self.server.answer(self.command, parts.path.removeprefix(API), parse_qs(parts.query), body)
        self.send_response(self.server.refuse or (200 if answer is not None else 404))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer or {}).encode())

    do_GET = do_POST = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start servers that are gone when the test ends."""
    started: list[Api] = []

    def start(*states: str, refuse: int | None = None) -> Api:
        started.append(Api(list(states), refuse))
        threading.Thread(target=started[-1].serve_forever, args=(0.02,), daemon=True).start()
        return started[-1]

    yield start
    for api in started:
        api.shutdown()
        api.server_close()


def run(api: Api, *options: str) -> Result:
    return CliRunner().invoke(submit.main, ["--host", api.host, "--poll-s", "0.01", *options])


@pytest.mark.parametrize(("last", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1), ("SKIPPED", 1)])
def test_waiting_ends_with_the_run(serve: Any, last: str, code: int) -> None:
    api = serve("PENDING", "RUNNING", last)
    result = run(api, "--wait", "--set", "tune.epochs=3")
    assert result.exit_code == code, result.output
    assert [line for line in result.output.splitlines() if line.startswith("state")] == [
        "state: PENDING",
        "state: RUNNING",
        f"state: {last}",
    ]
    assert "overrides" in api.runs[0]["runtime_config"]["parameters"]
    assert api.runs[0]["runtime_config"]["parameters"]["overrides"] == "tune:\n  epochs: 3\n"
    assert api.runs[0]["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}


def test_the_same_pipeline_is_not_uploaded_twice(serve: Any) -> None:
    api = serve("SUCCEEDED")
    assert run(api).exit_code == 0
    assert run(api).exit_code == 0
    assert len(api.versions) == 1
    assert len(api.runs) == 2


def test_waiting_is_bounded(serve: Any) -> None:
    result = run(serve("RUNNING"), "--wait", "--timeout-s", "0.2")
    assert (result.exit_code, "did not end in" in result.output) == (1, True)


@pytest.mark.parametrize(("status", "hint"), [(401, "--token"), (403, "--namespace"), (500, "ml-pipeline")])
def test_a_refusal_is_one_line(serve: Any, status: int, hint: str) -> None:
    result = run(serve("SUCCEEDED", refuse=status))
    assert result.exit_code == 2
    assert str(status) in result.output
    assert hint in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_host_that_is_away_is_one_line(serve: Any) -> None:
    api = serve("SUCCEEDED")
    api.server_close()
    result = run(api)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert "does not answer" in result.output


def test_a_wrong_setting_is_told_before_the_host_is_asked(serve: Any) -> None:
    api = serve("SUCCEEDED")
    assert run(api, "--set", "tune.epochs=0").exit_code == 2
    assert api.requests == []
