"""The served model over HTTP: MLflow's protocol, with bounds on what one request, and all of them together, may cost.

    python -m mdpr.mlops.serving models:/mdpr@champion --port 8080

GET  /ping, /health, /version
GET  /metrics        answers in the prediction log and answers that could not be written, of one worker (Prometheus)
POST /invocations    JSON in a form of MLflow (dataframe_split, dataframe_records, inputs, instances), with `params`

Bounds: bytes of a body and of all bodies held, time for headers and for a body, JSON values, requests that wait. One
request at a time is computed per worker: PyTorch uses all cores for it anyway, and memory stays that of one request.
With --log a worker records its answers (`mdpr.monitoring.recording`), with --prior it expects other class shares than
tuning did (`mdpr.model.inference`). The id of a request, its header X-Request-Id or a new one, is in the log and
in the answer's header.

What a single picture may cost is bounded by the model itself (mlflow/model.py), so it holds under any server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import pandas as pd
import uvicorn
from mlflow.exceptions import MlflowException
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from mdpr.errors import ConfigError, MdprError, printable
from mdpr.model.inference import DEADLINE, Classifier, read_prior, read_served_config
from mdpr.monitoring.recording import REQUEST_ID, AnswerRecorder, LogSettings, check_folder, log_source
from mdpr.params import MAX_TOP_K

# The environment variables that carry the command's options to the workers.
MODEL_VARIABLE, TIMEOUT_VARIABLE = "MDPR_SERVED_MODEL", "MDPR_SERVE_TIMEOUT_S"
LOG_VARIABLE, PRIOR_VARIABLE = "MDPR_SERVE_LOG", "MDPR_SERVE_PRIOR"
REQUEST_HEADER = "X-Request-Id"
MAX_BODY_BYTES = 64 * 2**20
MAX_HELD_BYTES = 3 * MAX_BODY_BYTES  # of all requests of a worker that wait or are computed
MAX_WAITING = 128  # requests
MAX_CONNECTIONS = 512
MAX_JSON_VALUES = 50_000  # counted by brackets and commas, which base64 text does not have
HEADER_TIMEOUT_S = 10
BODY_TIMEOUT_S = 30
RETRY_AFTER_S = 2
START_TIMEOUT_S = 300  # of a worker that loads its model; it is started anew after it

FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances")
T = TypeVar("T")
Answer = Callable[[pd.DataFrame, dict[str, Any]], pd.DataFrame]


class Rejected(Exception):
    """A request that gets no answer: HTTP status and one line. The line never repeats what was sent."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}
        if self.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not read
        code = "BAD_REQUEST" if self.status < 500 else "TEMPORARILY_UNAVAILABLE"
        return JSONResponse({"error_code": code, "message": str(self)}, self.status, headers)


# --- one request ----------------------------------------------------------------------------------------------


def read_request(body: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The image cells and the parameters of a request. Raises `Rejected` (400) for what is none."""
    if sum(body.count(sign) for sign in b"[{,") > MAX_JSON_VALUES:
        raise Rejected(400, f"the request holds more than {MAX_JSON_VALUES:,} JSON values")
    try:
        content = json.loads(body)
    except RecursionError:
        raise Rejected(400, "the request is nested too deeply") from None
    except ValueError:
        raise Rejected(400, "the request is not valid JSON") from None
    if not isinstance(content, dict):
        raise Rejected(400, f"the request must be a JSON object with one of {', '.join(FORMS)}")
    forms = [form for form in FORMS if form in content]
    if len(forms) != 1 or set(content) - {*forms, "params"}:
        raise Rejected(400, f"the request must hold exactly one of {', '.join(FORMS)}, and params if needed")
    return _images(forms[0], content[forms[0]]), _params(content.get("params"))


def _images(form: str, content: Any) -> list[Any]:
    if form == "dataframe_split":
        if not (isinstance(content, dict) and isinstance(content.get("data"), list)):
            raise Rejected(400, 'dataframe_split must look like {"columns": ["image"], "data": [["<base64>"]]}')
        if content.get("columns") != ["image"]:
            raise Rejected(400, "dataframe_split.columns must be just image")
        rows = content["data"]
        if not all(isinstance(row, list) and len(row) == 1 for row in rows):
            raise Rejected(400, "dataframe_split.data must hold one list with one image per row")
        return [row[0] for row in rows]
    if isinstance(content, dict):
        if set(content) != {"image"}:
            raise Rejected(400, f"{form} must have the column image, and no other")
        content = content["image"]
    rows = content if isinstance(content, list) else [content]
    if any(isinstance(row, dict) and set(row) != {"image"} for row in rows):
        raise Rejected(400, f"{form}: every row must have the column image, and no other")
    return [row["image"] if isinstance(row, dict) else row for row in rows]


def _params(params: Any) -> dict[str, Any]:
    if params is None:
        return {}
    if not isinstance(params, dict) or set(params) - {"top_k", "explain"}:
        raise Rejected(400, f"params takes top_k (1 to {MAX_TOP_K}) and explain (true or false), nothing else")
    top_k, explain = params.get("top_k", 5), params.get("explain", False)
    if type(top_k) is not int or not 1 <= top_k <= MAX_TOP_K:
        raise Rejected(400, f"params.top_k must be a whole number from 1 to {MAX_TOP_K}")
    if type(explain) is not bool:
        raise Rejected(400, "params.explain must be true or false")
    return {"top_k": top_k, "explain": explain}


# --- the service ----------------------------------------------------------------------------------------------


@dataclass
class Service:
    """One worker: `answer` computes, one request at a time, each within `timeout_s` of its arrival."""

    answer: Answer
    timeout_s: float

    def __post_init__(self) -> None:
        self._held_bytes = 0
        self._waiting = 0
        self._one_at_a_time = ThreadPoolExecutor(max_workers=1)

    async def invocations(self, request: Request) -> Response:
        deadline_s = time.monotonic() + self.timeout_s
        request_id = request.headers.get(REQUEST_HEADER, "")
        if not re.fullmatch(r"[\w.:/+=-]{1,128}", request_id, re.ASCII):
            request_id = uuid.uuid4().hex
        held: list[bytes] = []
        self._waiting += 1
        try:
            if self._waiting > MAX_WAITING:
                raise Rejected(503, "too many requests are waiting: try again")
            body_s = min(BODY_TIMEOUT_S, self.timeout_s)
            await _within(body_s, self._receive(request, held), Rejected(408, f"no whole body within {body_s:g} s"))
            computed = asyncio.get_running_loop().run_in_executor(
                self._one_at_a_time, partial(self._compute, b"".join(held), deadline_s, request_id)
            )
            late = Rejected(504, f"no answer within {self.timeout_s:g} s: send fewer images per request")
            answer = await _within(deadline_s - time.monotonic(), asyncio.shield(computed), late)
            return Response(answer, media_type="application/json", headers={REQUEST_HEADER: request_id})
        except Rejected as refused:
            return refused.response()
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            self._waiting -= 1
            self._held_bytes -= sum(map(len, held))

    async def _receive(self, request: Request, held: list[bytes]) -> None:
        """Gather the body into `held`. Raises `Rejected` as soon as it is known to be too large."""
        too_large = Rejected(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes: send fewer images per request")
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            raise too_large
        async for chunk in request.stream():
            held.append(chunk)
            self._held_bytes += len(chunk)
            if sum(map(len, held)) > MAX_BODY_BYTES:
                raise too_large
            if self._held_bytes > MAX_HELD_BYTES:
                raise Rejected(503, "too many bytes are waiting: try again")

    def _compute(self, body: bytes, deadline_s: float, request_id: str) -> bytes:
        """The answer as JSON. Runs in the worker's one computing thread; a request that timed out is not begun."""
        if time.monotonic() > deadline_s:
            raise TimeoutError
        images, params = read_request(body)
        token, named = DEADLINE.set(deadline_s), REQUEST_ID.set(request_id)
        try:
            table = self.answer(pd.DataFrame({"image": pd.Series(images, dtype=object)}), params)
        except MlflowException as error:
            raise Rejected(400, error.message) from None
        finally:
            DEADLINE.reset(token)
            REQUEST_ID.reset(named)
        return json.dumps({"predictions": table.to_dict("records")}, allow_nan=False).encode()


async def _within(seconds: float, work: Awaitable[T], late: Rejected) -> T:
    """The result of `work`; raises `late` if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise late from None


def make_app() -> Starlette:
    """The ASGI application of a worker, its model loaded. Reads the variables that `main` sets."""
    model = mlflow.pyfunc.load_model(os.environ[MODEL_VARIABLE])
    log = _prepare(model.unwrap_python_model().classifier)
    # Past MLflow's own check of the input, which repeats a request in its errors; read_request has checked it.
    service = Service(partial(model.unwrap_python_model().predict, None), float(os.environ[TIMEOUT_VARIABLE]))

    async def alive(_: Request) -> Response:
        return PlainTextResponse("\n")

    async def version(_: Request) -> Response:
        return PlainTextResponse(mlflow.__version__)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(_counters(log))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        if log is not None:
            await asyncio.to_thread(log.close)

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/ping", alive),
            Route("/health", alive),
            Route("/version", version),
            Route("/metrics", metrics),
            Route("/invocations", service.invocations, methods=["POST"]),
        ],
    )


def _prepare(classifier: Classifier) -> AnswerRecorder | None:
    """Give the worker's model its deployment prior and its log, as the environment has them."""
    if prior := os.environ.get(PRIOR_VARIABLE):
        classifier.prior = read_prior(prior, classifier.config)
    if not (settings := os.environ.get(LOG_VARIABLE)):
        return None
    content = json.loads(settings)
    bounds = LogSettings(**{**content, "folder": Path(content["folder"])})
    log = AnswerRecorder(bounds, log_source(classifier, os.environ[MODEL_VARIABLE]))
    classifier.record = log.record
    return log


def _counters(log: AnswerRecorder | None) -> str:
    """Two counters of this worker as Prometheus reads them."""
    values = {"logged": log.written if log else 0, "dropped": log.dropped if log else 0}
    lines = [
        f'# TYPE mdpr_answers_{name}_total counter\nmdpr_answers_{name}_total{{pid="{os.getpid()}"}} {value}'
        for name, value in values.items()
    ]
    return "\n".join(lines) + "\n"


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a time limit for the headers of every request; uvicorn itself has none."""

    _headers_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if self._idle():
            self._expect_headers()
        super().data_received(data)
        if not self._idle():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _expect_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None


def parse_arguments() -> tuple[argparse.Namespace, LogSettings | None]:
    """The command line, and the settings of the prediction log if there is one."""
    parser = argparse.ArgumentParser(description="Serve a model of the MLflow registry, or a folder, over HTTP.")
    parser.add_argument("model", help="models:/NAME/VERSION, models:/NAME@ALIAS or the folder of a model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--workers", type=int, default=1, help="processes, a model in each")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="seconds for a whole request")
    parser.add_argument("--prior", help="class shares to expect: uniform, or a JSON file")
    parser.add_argument("--log", type=Path, help="folder of the prediction log; without it none is written")
    parser.add_argument("--log-embeddings", action="store_true", help="image features too")
    parser.add_argument("--log-rows", type=int, default=LogSettings.rows, help="rows of a file")
    parser.add_argument("--log-seconds", type=float, default=LogSettings.seconds, help="between two files at most")
    parser.add_argument("--log-max-mb", type=int, default=LogSettings.max_mb, help="of the folder at most")
    options = parser.parse_args()
    settings = None
    if options.log:
        bounds = (options.log_rows, options.log_seconds, options.log_max_mb)
        settings = LogSettings(options.log.absolute(), options.log_embeddings, *bounds)
    return options, settings


def check_address(host: str, port: int) -> None:
    """Raises `ConfigError` if the server could not listen there: found out before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn: a server that ended is no obstacle
        try:
            listener.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"--host {host} --port {port}: {reason}: end what listens there, or choose another address"
            ) from None


def main() -> None:
    """Start the server: one line and exit code 2 for a user's mistake."""
    options, log = parse_arguments()
    try:  # what only the workers use, so that a mistake ends the command
        check_address(options.host, options.port)
        if log:
            check_folder(log.folder)
        if options.prior:
            print(read_prior(options.prior, read_served_config(options.model)), file=sys.stderr)
    except MdprError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    os.environ |= {
        MODEL_VARIABLE: options.model,
        TIMEOUT_VARIABLE: str(options.timeout_s),
        LOG_VARIABLE: json.dumps(asdict(log), default=str) if log else "",
        PRIOR_VARIABLE: options.prior or "",
    }
    uvicorn.run(
        "mdpr.mlops.serving:make_app",
        factory=True,
        host=options.host,
        port=options.port,
        workers=options.workers,
        http="mdpr.mlops.serving:BoundedProtocol",
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_worker_healthcheck=START_TIMEOUT_S,
        access_log=False,
    )


if __name__ == "__main__":
    main()
