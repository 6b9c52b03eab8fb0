"""A loopback server that plays the Kubeflow Pipelines API, and checks what it is sent against the published shapes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.contract.kfp_shapes import Operation, message_faults, operations, query_faults, required_inputs

API = "/apis/v2beta1"
DROP = "the connection is dropped"
OPERATIONS = operations()
VERSION = {"pipeline_id": "p1", "pipeline_version_id": "v1", "display_name": "first"}
Query = Mapping[str, list[str]]


class Api(ThreadingHTTPServer):
    """Answers what the client asks, and keeps what it was sent.

    states      a state a poll, the last one for ever; DROP closes the connection, a number is the status of an error
    run         what else the API says about its only run, `run_id`
    refuse      (method, path) -> status, of requests that are refused; None stands for all
    faults      what in requests and in answers is not as published
    """

    daemon_threads = True

    def __init__(
        self,
        states: list[str | int],
        refuse: Mapping[tuple[str, str] | None, int] | None = None,
        run: Mapping[str, Any] | None = None,
        run_id: str = "r1",
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states, self.refuse, self.run, self.run_id = states, refuse or {}, run or {}, run_id
        self.requests: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.versions: list[dict[str, str]] = []
        self.schedules: list[dict[str, Any]] = []
        self.packages: list[bytes] = []

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def play(self, method: str, target: str, body: bytes) -> tuple[int, Any] | None:
        """Status and content of the answer to a request; None where the connection is to be dropped."""
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        path = parts.path.removeprefix(API)
        self.requests.append((method, path))
        operation = next((item for item in OPERATIONS if item.fits(method, parts.path)), None)
        if operation is None:
            self.faults.append(f"{method} {parts.path} is not in the API")
            return 404, {}
        self.faults += request_faults(operation, query, body)
        if status := self.refuse.get((method, path)) or self.refuse.get(None):
            return status, {"code": status, "message": "refused", "details": []}
        answer = self._answer(method, path, query, body)
        if answer in (None, DROP):
            return (404, {}) if answer is None else None
        if isinstance(answer, int):
            return answer, {"code": answer, "message": "not now", "details": []}
        self.faults += message_faults(answer, operation.answer or "object", f"answer to {method} {path}")
        return 200, answer

    def _answer(self, method: str, path: str, query: Query, body: bytes) -> Any:
        if (method, path) == ("POST", "/pipelines/upload"):
            self.packages.append(body)
            return {"pipeline_id": "p1", "display_name": query["name"][0]}
        if (method, path) == ("POST", "/pipelines/upload_version"):
            self.versions.append({**VERSION, "display_name": query["name"][0]})
            return self.versions[-1]
        if (method, path) == ("POST", "/runs"):
            self.runs.append(json.loads(body))
            return {"run_id": self.run_id}
        if (method, path) == ("POST", "/recurringruns"):
            self.schedules.append(json.loads(body))
            return {"recurring_run_id": "s1"}
        if (method, path) == ("GET", f"/runs/{self.run_id}"):
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            plays = state == DROP or isinstance(state, int)
            return state if plays else {"run_id": self.run_id, "state": state, **self.run}
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
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        played = self.server.play(self.command, self.path, body)
        if played is None:
            self.close_connection = True
            return
        status, content = played
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    do_GET = do_POST = do_DELETE = do_PATCH = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def request_faults(operation: Operation, query: Query, body: bytes) -> Iterator[str]:
    """What in a request is not as published."""
    yield from query_faults(operation, query)
    name = f"{operation.method} {operation.path}"
    for part in operation.files:
        if not re.search(
            rb'content-disposition: form-data; name="%s"; filename="[^"]+\.yaml"' % part.encode(), body, re.I
        ):
            yield f"{name} has no file {part}"
    if operation.body:
        try:
            message = json.loads(body)
        except json.JSONDecodeError:
            yield f"{name}: the body is not JSON"
            return
        yield from message_faults(message, operation.body, operation.body)
        for field in required_inputs(operation.body) - {key for key, value in message.items() if value is not None}:
            yield f"{name} needs {operation.body}.{field}"
    elif body and not operation.files:
        yield f"{name} takes no body"


@contextmanager
def serving(api: Api) -> Iterator[Api]:
    """`api`, up until the context ends; then every request must have been as published."""
    threading.Thread(target=api.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield api
    finally:
        api.shutdown()
        api.server_close()
    assert api.faults == []
