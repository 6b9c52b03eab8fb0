"""A loopback server that plays the Kubeflow Pipelines API, and checks what it is sent against the published shapes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from tests.contract.kfp_shapes import Operation, message_faults, operations, query_faults, required_inputs

API = "/apis/v2beta1"
DROP = "the connection is dropped"
OPERATIONS = operations()
PAGE = 20  # of a listing that names no size (api/server/list_request_util.go)
MOST = 200
Query = Mapping[str, list[str]]
Served = TypeVar("Served", bound=Any)


class Api(ThreadingHTTPServer):
    """Answers what the client asks, and keeps what it was sent.

    states      a state per poll, the last one for ever; DROP closes the connection, a number is the status of an error
    run         what else the API says about its only run, `run_id`
    refuse      (method, path) -> status, of requests that are refused; None stands for all
    tag         version of the server, as its healthz has it
    namespace   of the user on a cluster that several share: every request must name it; None: a cluster of one user
    pipelines   name -> identifier
    versions    pipeline -> its versions, oldest first
    faults      what in requests and in answers is not as published
    """

    daemon_threads = True

    def __init__(
        self,
        states: list[str | int],
        refuse: Mapping[tuple[str, str] | None, int] | None = None,
        run: Mapping[str, Any] | None = None,
        run_id: str = "r1",
        namespace: str | None = None,
        tag: str = "2.17.0",
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states, self.refuse, self.run, self.run_id = states, refuse or {}, run or {}, run_id
        self.requests: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.namespace, self.tag = namespace, tag
        self.pipelines: list[dict[str, str]] = []
        self.versions: list[dict[str, str]] = []
        self.headers: list[Message] = []
        self.schedules: list[dict[str, Any]] = []
        self.packages: list[bytes] = []

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def play(self, method: str, target: str, body: bytes) -> tuple[int, Any] | None:
        """Status and content of the answer to a request; None if the connection is to be dropped."""
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
        # main.go newHealthzResponse: more than what is published
        return 200, answer | {"tag_name": self.tag} if path == "/healthz" else answer

    def _answer(self, method: str, path: str, query: Query, body: bytes) -> Any:
        if (method, path) == ("POST", "/pipelines"):
            return self._create(self.pipelines, "pipeline_id", "p", json.loads(body))
        if (method, path) == ("POST", "/pipelines/upload_version"):
            self.packages.append(body)
            sent = {"pipeline_id": query["pipelineid"][0], "display_name": query["name"][0], "name": query["name"][0]}
            return self._create(self.versions, "pipeline_version_id", "v", sent)
        if (method, path) == ("POST", "/runs"):
            self.runs.append(json.loads(body))
            return {"run_id": self.run_id}
        if (method, path) == ("POST", "/recurringruns"):
            self.schedules.append(json.loads(body))
            return {"recurring_run_id": "s1"}
        if (method, path) == ("POST", "/experiments"):
            return self._in_namespace(json.loads(body).get("namespace")) or {"experiment_id": "e1"}
        if (method, path) == ("GET", f"/runs/{self.run_id}"):
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            plays = state == DROP or isinstance(state, int)
            return state if plays else {"run_id": self.run_id, "state": state, **self.run}
        if (method, path) == ("GET", "/pipelines"):
            return self._in_namespace(*query.get("namespace", [None])) or self._page("pipelines", self.pipelines, query)
        if (method, path) == ("GET", "/experiments"):
            return self._in_namespace(*query.get("namespace", [None])) or {}
        if method == "GET" and (found := re.fullmatch(r"/pipelines/(\w+)/versions", path)):
            versions = [item for item in self.versions if item["pipeline_id"] == found[1]]
            return self._page("pipeline_versions", versions, query)
        return {"multi_user": self.namespace is not None} if path == "/healthz" else None

    def _in_namespace(self, given: str | None) -> int | None:
        """The status of a refusal: several users need a namespace, one user has none (api/validation/namespace.go)."""
        return None if (given or None) == self.namespace else 400

    def _create(self, items: list[dict[str, str]], key: str, letter: str, sent: dict[str, str]) -> Any:
        """The next of `items`; a name is unique (api/storage)."""
        if key == "pipeline_id" and (status := self._in_namespace(sent.get("namespace"))):
            return status
        same = [item for item in items if item["name"] == sent["name"]]
        if any(item.get("pipeline_id") == sent.get("pipeline_id") or key == "pipeline_id" for item in same):
            return 409
        items.append(sent | {key: f"{letter}{len(items) + 1}"})
        return items[-1]

    def _page(self, kind: str, items: list[dict[str, str]], query: Query) -> Any:
        size, first = int(query.get("page_size", [str(PAGE)])[0]), int(query.get("page_token", [""])[0] or 0)
        if not 0 <= size <= MOST:
            return 400
        page = {kind: items[first : first + size]}
        return page | ({"next_page_token": str(first + size)} if first + size < len(items) else {})


class Handler(BaseHTTPRequestHandler):
    """For any server with `play` and `headers`; text is answered as it is, everything else as JSON."""

    server: Any

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.headers.append(self.headers)
        played = self.server.play(self.command, self.path, body)
        if played is None:
            self.close_connection = True
            return
        status, content = played
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.end_headers()
        self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())

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
def serving(api: Served) -> Iterator[Served]:
    """`api`, up until the context ends; then every request must have been as published."""
    threading.Thread(target=api.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield api
    finally:
        api.shutdown()
        api.server_close()
    assert api.faults == []
