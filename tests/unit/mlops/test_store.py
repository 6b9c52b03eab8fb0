"""The store: made once, however many meet it first; and what becomes of one that does not do what it should."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError
from mdpr.mlops import store as store_module
from mdpr.mlops.registry import CHAMPION, Registry
from mdpr.mlops.runs import add_results, open_run
from mdpr.mlops.store import Store, Unreachable, connect, explain, without_login
from mdpr.params import TrackingParams

FIRST_USE = """
import sys
from mdpr.mlops.store import connect
print("ready", flush=True)
sys.stdin.readline()
print(connect().client.create_experiment(sys.argv[1]))
"""


def test_processes_that_meet_an_empty_store_at_once_make_it_together(tmp_path: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    crowd = [
        subprocess.Popen([sys.executable, "-c", FIRST_USE, name], cwd=tmp_path, env=environment, text=True, **pipes)
        for name in ("first", "second", "third")
    ]
    for process in crowd:
        assert process.stdout
        process.stdout.readline()
    answers = []
    for process in crowd:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in crowd:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
        answers.append(output.strip())
    assert sorted(answers) == ["1", "2", "3"]
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlruns"}


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("https://ann:secret@mlflow.example:8443/path", "https://mlflow.example:8443/path"),
    ],
)
def test_an_address_loses_its_login_and_nothing_else(uri: str, shown: str) -> None:
    assert without_login(uri) == shown


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "API request to endpoint /x failed with error code 401 != 200.",
            "refused (401): set MLFLOW_TRACKING_USER",
        ),
        ("API request to endpoint /x failed with error code 404 != 200.", "answered with status 404: start"),
        (
            "API request to http://h failed with exception Max retries ... too many 500 error responses",
            "status 500",
        ),
        ("API request to http://h failed with timeout exception hunter2", "cannot be reached: start"),
        ("Invalid name\nhunter2 again", "MLflow at http://h:5: Invalid name *** again"),
        ("", "failed without a message"),
    ],
)
def test_refusals_are_one_line_without_the_password(message: str, expected: str) -> None:
    line = explain("http://someone:hunter2@h:5", message)
    assert expected in line
    assert "hunter2" not in line
    assert "\n" not in line


def test_a_damaged_store_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    started_s = time.monotonic()
    with pytest.raises(TrackingError, match=r"mlflow\.db is not an MLflow store"):
        connect()
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_a_store_that_is_no_file_is_refused_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mlflow.db"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    with pytest.raises(TrackingError, match="is not a file: mend MLFLOW_TRACKING_URI"):
        connect()


# --- locked is not broken -----------------------------------------------------------------------------------


@pytest.fixture
def locked(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """The store's file while another connection holds all of it; waiting for it ends soon."""
    monkeypatch.setattr(store_module, "LOCK_WAIT_S", 0.2)
    assert store.file
    with closing(sqlite3.connect(store.file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other


def test_a_locked_store_is_said_to_be_locked(locked: sqlite3.Connection) -> None:
    with pytest.raises(Unreachable, match="locked by another process: let it finish"):
        connect()


@pytest.mark.parametrize("how", ["PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL"])
def test_a_store_that_is_locked_in_another_way_is_no_broken_one(how: str, locked: sqlite3.Connection) -> None:
    locked.execute("ROLLBACK")
    locked.execute(how)
    locked.execute("BEGIN EXCLUSIVE")
    if how.endswith("EXCLUSIVE"):
        locked.execute("COMMIT")  # the lock stays
        with pytest.raises(Unreachable, match="locked by another process"):
            connect()
    else:
        assert Registry(connect(), "shoes").aliases() == {}  # readers go on


def test_a_locked_store_is_waited_for(locked: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_WAIT_S", 60.0)
    threading.Timer(0.5, lambda: locked.execute("ROLLBACK")).start()
    assert Registry(connect(), "shoes").aliases() == {}


def test_beside_a_locked_store_runs_and_results_wait_in_the_outbox(
    store: Store, locked: sqlite3.Connection, tracking: TrackingParams, tmp_path: Path
) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        run.log_epoch({"loss": 1.0}, 0)
    add_results(run.tracked, tracking, {"test/fused/all": 0.8}, {})
    assert len(list((tmp_path / tracking.outbox).iterdir())) == 2
    locked.execute("ROLLBACK")
    with open_run(tracking, "next", {}, {}):
        pass
    experiment = store.client.get_experiment_by_name("shoes")
    found = {seen.info.run_name: seen.data.metrics for seen in store.client.search_runs([experiment.experiment_id])}
    assert found == {"tune": {"train/loss": 1.0, "test/fused/all": 0.8}, "next": {}}


# --- a server that does not do what it should ---------------------------------------------------------------

Respond = Callable[[BaseHTTPRequestHandler], None]
Serve = Callable[[Respond], "type[Counting]"]


class Counting(BaseHTTPRequestHandler):
    """Answers everything by `respond`."""

    respond: Respond
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        type(self).respond(self)

    do_POST = do_PATCH = do_GET

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """serve(respond): MLFLOW_TRACKING_URI is a server that answers so; it is asked twice at most, 1 s each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(store_module, "BACKOFF_S", 3.0)
    servers = []

    def start(respond: Respond) -> type[Counting]:
        handler = type("Handler", (Counting,), {"respond": staticmethod(respond)})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:hunter2@127.0.0.1:{server.server_port}")
        return handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answer(status: int, body: bytes, kind: str = "application/json") -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(5)


def trickle(handler: BaseHTTPRequestHandler) -> None:
    """A byte each 0.3 s: never slow enough for a time-out per read."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.3)
    except OSError:
        return  # the client has gone


def half(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"experiment": {')


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xff\x00 no status line\r\n\r\n")


NOT_FOUND = b'{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"no such experiment"}'
LOGIN = b"<html><form>Sign in</form></html>"
UNREACHABLE = {
    "500": (answer(500, b""), "answered with status 500"),
    "503 with JSON": (answer(503, b'{"error_code":"X","message":"nope"}'), "answered with status 503"),
    "429": (answer(429, b""), "answered with status 429"),
    "hangs": (hang, "cannot be reached"),
    "trickles": (trickle, "no whole answer within"),
    "half an answer": (half, "cannot be reached"),
    "garbage": (garbage, "cannot be reached"),
}
WRONG = {
    "401 with JSON": (
        answer(401, b'{"error_code":"X","message":"nope"}'),
        r"refused \(401\): set MLFLOW_TRACKING_USERNAME",
    ),
    "403": (answer(403, b""), r"refused \(403\): set MLFLOW_TRACKING_USERNAME"),
    "404": (answer(404, b"not here"), "status 404"),
    "418 with JSON": (answer(418, b'{"error_code":"X","message":"nope"}'), "status 418"),
    "{}": (answer(200, b"{}"), "does not answer as an MLflow server"),
    "list": (answer(200, b"[1,2,3]"), "does not answer as an MLflow server"),
    "null": (answer(200, b"null"), "does not answer as an MLflow server"),
    "nested": (answer(200, b"[" * 100_000), "does not answer as an MLflow server"),
    "login page": (answer(200, LOGIN, "text/html"), "does not answer as an MLflow server"),
    "an experiment without an id": (answer(200, b'{"experiment": {}}'), "does not answer as an MLflow server"),
}


@pytest.mark.parametrize("name", [*UNREACHABLE, *WRONG])
def test_a_server_in_trouble_is_one_line_and_costs_nobody_a_result(
    name: str, serve: Serve, tracking: TrackingParams, tmp_path: Path
) -> None:
    respond, reason = (UNREACHABLE | WRONG)[name]
    handler = serve(respond)
    with pytest.raises(TrackingError, match=reason) as caught:
        Registry(connect(), "shoes").get_by_alias(CHAMPION)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert isinstance(caught.value, Unreachable) == (name in UNREACHABLE)
    assert handler.requests <= 2
    run = TrackedRun(run_id="0" * 32, experiment="shoes")
    add_results(run, tracking, {"a": 1.0}, {})  # an evaluation is not lost for it
    assert len(list((tmp_path / tracking.outbox).iterdir())) == 1


def test_the_first_request_ends_soon_unless_the_user_has_set_limits(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hang)
    monkeypatch.setattr(store_module, "CHECK_LIMIT_S", 1.0)
    with pytest.raises(Unreachable, match="cannot be reached: start the server"):
        connect()
    for name in store_module.HTTP_LIMITS:
        monkeypatch.delenv(name)
    for _ in range(2):  # by the second time the process has MLflow's limits in its environment
        with pytest.raises(Unreachable, match="no whole answer within 1 s: start the server"):
            connect()


def test_a_login_that_is_refused_ends_before_the_work(serve: Serve, tracking: TrackingParams) -> None:
    serve(answer(401, b""))
    worked = False
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD"), open_run(tracking, "tune", {}, {}):
        worked = True
    assert not worked


@pytest.mark.parametrize("body", [b"[1,2,3]", b"null", b"{}", LOGIN])
def test_a_server_that_stops_to_be_mlflow_loses_nothing(
    body: bytes, serve: Serve, tracking: TrackingParams, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        probed = "mdpr-is-this-an-mlflow-server" in handler.path
        (answer(404, NOT_FOUND) if probed else answer(200, body))(handler)

    serve(respond)
    with caplog.at_level("WARNING", logger="mdpr"):
        add_results(TrackedRun(run_id="0" * 32, experiment="shoes"), tracking, {"a": 1.0}, {})
    assert caplog.records
    assert all("\n" not in record.getMessage() for record in caplog.records)
    (waiting,) = (tmp_path / tracking.outbox).iterdir()
    assert (waiting / "item.json").is_file()
    assert waiting.suffix != ".refused"
