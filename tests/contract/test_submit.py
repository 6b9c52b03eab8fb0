"""submit and schedule against a loopback server that plays a Kubeflow Pipelines API: the real client, real HTTP."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from mdpr.cli import main

PROJECT = Path(__file__).resolve().parents[2]
DROP = "the connection is dropped"
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
        self.schedules: list[dict[str, Any]] = []
        self.packages: list[bytes] = []

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> dict[str, Any] | None:
        if (method, path) == ("POST", "/pipelines/upload"):
            assert b"mdpr-training" in body
            self.packages.append(body)
            return {"pipeline_id": "p1", "display_name": query["name"][0]}
        if (method, path) == ("POST", "/pipelines/upload_version"):
            self.versions.append({**VERSION, "display_name": query["name"][0]})
            return self.versions[-1]
        if (method, path) == ("POST", "/runs"):
            self.runs.append(json.loads(body))
            return {"run_id": "r1"}
        if (method, path) == ("POST", "/recurringruns"):
            self.schedules.append(json.loads(body))
            return {"recurring_run_id": "s1"}
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
        if (answer or {}).get("state") == DROP:
            self.close_connection = True
            return
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


@dataclass(frozen=True)
class Result:
    exit_code: int
    output: str


@pytest.fixture(autouse=True)
def _project_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


def mdpr(*arguments: str) -> Result:
    """The command line as a user has it, its two streams together."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        patch.setattr(sys, "argv", ["mdpr", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return Result(int(ended.value.code or 0), output.getvalue())


def run(api: Api, *options: str) -> Result:
    return mdpr("pipeline", "submit", "--host", api.host, "--poll-s", "0.01", *options)


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
    assert api.runs[0]["runtime_config"]["parameters"] == {"recipe": "", "overrides": "tune:\n  epochs: 3\n"}
    assert f"{api.host}/#/runs/details/r1" in result.output
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


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "--token"), (403, "--namespace"), (409, "another name"), (500, "ml-pipeline")]
)
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


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--recipe", "cifar"], "no recipe cifar"),
        (["--set", "tune.epoch=3"], "tune.epoch is not a setting"),
        (["--site", "no/such.yaml"], "no/such.yaml does not exist"),
    ],
)
def test_a_mistake_is_one_line_before_the_host_is_asked(serve: Any, options: list[str], named: str) -> None:
    api = serve("SUCCEEDED")
    result = run(api, *options)
    assert (result.exit_code, api.requests, len(result.output.strip().splitlines())) == (2, [], 1), result.output
    assert named in result.output


def test_a_poll_that_gets_no_answer_is_repeated(serve: Any) -> None:
    result = run(serve("RUNNING", DROP, DROP, "SUCCEEDED"), "--wait")
    assert result.exit_code == 0, result.output
    assert [line for line in result.output.splitlines() if line.startswith("state")] == [
        "state: RUNNING",
        "state: SUCCEEDED",
    ]


def test_a_server_that_goes_away_for_good_is_one_line(serve: Any) -> None:
    result = run(serve("RUNNING", DROP), "--wait")
    assert result.exit_code == 2
    assert "does not answer" in result.output.strip().splitlines()[-1]


def test_a_site_of_its_own_is_what_is_uploaded(serve: Any, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"image_gpu": "registry.example.org/gpu:7", "data_claim": "image-sets"}), "utf-8")
    api = serve("SUCCEEDED")
    assert run(api, "--site", str(site)).exit_code == 0
    assert b"registry.example.org/gpu:7" in api.packages[0]
    assert b"image-sets" in api.packages[0]


def test_schedule_hands_over_cron_parameters_and_version(serve: Any) -> None:
    api = serve()
    result = mdpr("pipeline", "schedule", "--host", api.host, "--cron", "0 3 * * 1", "--recipe", "cifar100-lt")
    assert result.exit_code == 0, result.output
    (sent,) = api.schedules
    assert sent["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (sent["max_concurrency"], sent["no_catchup"], sent["mode"]) == (1, True, "ENABLE")
    assert sent["runtime_config"]["parameters"] == {"recipe": "cifar100-lt", "overrides": ""}
    assert sent["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}


@pytest.mark.parametrize("cron", ["", "daily", "0 3 * *", "0 0 0 3 * * 1"])
def test_a_wrong_cron_expression_is_told_before_the_host_is_asked(serve: Any, cron: str) -> None:
    api = serve()
    result = mdpr("pipeline", "schedule", "--host", api.host, "--cron", cron)
    assert (result.exit_code, api.requests) == (2, [])
    assert "minute hour day month weekday" in result.output


def test_outside_a_project_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = mdpr("pipeline", "compile")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert "project's folder" in result.output
