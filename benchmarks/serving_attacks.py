"""Requests that are made to exhaust the served model: each must be answered or refused, and memory stays bounded.

After each of them an ordinary request must get its class. Memory is the largest that the server process ever had
(VmHWM).
"""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from PIL import Image

from benchmarks.servers import running
from benchmarks.trial_project import PROJECT, Figures, Project, tell

MANIFEST = PROJECT / "mlflow/kubernetes/inference-service.yaml"
TIMEOUT_S = 90
SLOW_CONNECTIONS = 50
SLOW = {  # what each of these connections sends, and no more
    "slow headers": b"POST /invocations HTTP/1.1\r\nHost: x\r\nX-",
    "slow bodies": b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{",
}
ROWS_TOO_MANY = 10_000


@dataclass(frozen=True)
class Outcome:
    """An attack, whether it went as it must, how long it took, and what came back if it did not."""

    name: str
    survived: bool
    seconds: float
    detail: str


class Target:
    """The server under attack, and what its own users send meanwhile."""

    def __init__(self, address: str) -> None:
        self.address = address
        rng = np.random.default_rng(0)
        self.good = text(encode(Image.fromarray(rng.integers(0, 255, (28, 28, 3), np.uint8)), "PNG"))

    def post(self, body: Any) -> requests.Response:
        data = body if isinstance(body, (bytes, Iterator)) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return requests.post(f"{self.address}/invocations", data=data, headers=headers, timeout=TIMEOUT_S)

    def answers(self) -> bool:
        """Whether an ordinary request gets its class."""
        answer = self.post(frame(self.good))
        return answer.status_code == 200 and answer.json()["predictions"][0]["class"] is not None

    def connect(self) -> socket.socket:
        place = urlsplit(self.address)
        return socket.create_connection((str(place.hostname), int(place.port or 80)), timeout=TIMEOUT_S)


def frame(*images: Any, **params: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}, "params": params}


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def flat(width_px: int, height_px: int, kind: str, mode: str = "L") -> str:
    """A picture of one colour, large in pixels and small in bytes, as base64 text."""
    return text(encode(Image.new(mode, (width_px, height_px)), kind))


# --- what each attack must end in -------------------------------------------------------------------------


def status(target: Target, body: Any, code: int, words: str = "") -> str:
    """Empty if the answer has this status and its text these words, and repeats nothing that was sent."""
    answer = target.post(body)
    if answer.status_code != code or words not in answer.text:
        return f"{answer.status_code}: {answer.text[:200]}"
    return "" if target.good[:40] not in answer.text else "the answer repeats the picture"


def rows(target: Target, images: list[Any], *expected: str | None) -> str:
    """Empty if the request is answered, each row by a class (None) or by an error with the expected words."""
    answer = target.post(frame(*images))
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[:200]}"
    found = [item["error"] for item in answer.json()["predictions"]]
    if len(found) != len(expected):
        return f"{len(found)} rows instead of {len(expected)}"
    pairs = zip(found, expected, strict=True)
    right = [error is None if words is None else words in (error or "") for error, words in pairs]
    return "" if all(right) else str(found)[:300]


def any_answer(target: Target, images: list[Any]) -> str:
    """Empty if every row of the request has a class or an error."""
    answer = target.post(frame(*images))
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[:200]}"
    bare = sum(not row["class"] and not row["error"] for row in answer.json()["predictions"])
    return f"{bare} rows have neither a class nor an error" if bare else ""


def at_once(target: Target, image: str, count: int) -> str:
    """`count` requests of the same image at once, ordinary ones beside them: all are answered, or refused for now."""
    with ThreadPoolExecutor(count + 4) as pool:
        heavy = [pool.submit(target.post, frame(image)) for _ in range(count)]
        light = [pool.submit(target.answers) for _ in range(4)]
        codes = {future.result().status_code for future in heavy}
        served = all(future.result() for future in light)
    return "" if codes <= {200, 503} and served else f"{sorted(codes)}, others served: {served}"


def chunked(size: int) -> Iterator[bytes]:
    yield b'{"inputs": ["'
    for _ in range(size // 2**20):
        yield b"A" * 2**20
    yield b'"]}'


def declared(target: Target, size: int) -> str:
    """A body of `size` bytes that is declared and not sent: refused at once."""
    with target.connect() as link:
        link.sendall(f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        answer = link.recv(4096)
    return "" if b" 413 " in answer else answer[:200].decode(errors="replace")


def slow(target: Target, start: bytes) -> str:
    """Connections that begin a request and wait: closed after a bounded time, others are served meanwhile."""
    links = [target.connect() for _ in range(SLOW_CONNECTIONS)]
    try:
        for link in links:
            link.sendall(start)
        if not target.answers():
            return "an ordinary request was not served meanwhile"
        open_links = 0
        for link in links:
            with suppress(ConnectionError):
                try:
                    while link.recv(4096):
                        pass
                except TimeoutError:
                    open_links += 1
        return f"{open_links} still open after {TIMEOUT_S} s" if open_links else ""
    finally:
        for link in links:
            link.close()


def raw(target: Target, data: bytes) -> str:
    """Bytes that are no HTTP: refused or closed."""
    with target.connect() as link:
        link.sendall(data)
        answer = link.recv(4096)
    return "" if not answer or b" 400 " in answer else answer[:200].decode(errors="replace")


def forms(target: Target) -> str:
    """Every form of MLflow's protocol is answered."""
    image, uri = target.good, "data:image/png;base64," + target.good
    bodies: list[Any] = [
        {"inputs": [image]},
        {"inputs": image},
        {"inputs": {"image": [image]}},
        {"inputs": [{"image": image}]},
        {"instances": [image]},
        {"instances": [{"image": image}]},
        {"dataframe_records": [{"image": image}]},
        frame(uri, top_k=3, explain=True),
    ]
    found = [target.post(body) for body in bodies]
    bad = [
        answer.text[:100] for answer in found if answer.status_code != 200 or answer.json()["predictions"][0]["error"]
    ]
    return "; ".join(bad)


def attacks() -> dict[str, Callable[[Target], str]]:
    """Name -> what attacks the target; its text is empty if all went as it must."""
    table: dict[str, Callable[[Target], str]] = {
        "forms of a request": forms,
        "thin PNG 1000000 x 1": lambda t: any_answer(t, [flat(1_000_000, 1, "PNG")]),
        "thin PNG 1 x 1000000": lambda t: any_answer(t, [flat(1, 1_000_000, "PNG")]),
        "thin PNG 63000000 x 1": lambda t: any_answer(t, [flat(63_000_000, 1, "PNG")]),
        "thin GIF and TIFF": lambda t: any_answer(t, [flat(65_000, 1, "GIF"), flat(60_000, 1, "TIFF")]),
        "256 thin PNGs": lambda t: any_answer(t, [flat(20_000, 1, "PNG")] * 256),
        "8 WebPs of 64 million pixels at once": lambda t: at_once(t, flat(8000, 7999, "WEBP", "RGB"), 8),
        "8 PNGs of 63 million pixels at once": lambda t: at_once(t, flat(7937, 7937, "PNG", "RGB"), 8),
        "16-bit PNG of 36 million pixels": lambda t: any_answer(t, [flat(6000, 6000, "PNG", "I;16")]),
        "CMYK JPEG of 49 million pixels": lambda t: any_answer(t, [flat(7000, 7000, "JPEG", "CMYK")]),
        "20 WebPs in one request": lambda t: rows(
            t, [flat(8000, 7999, "WEBP", "RGB")] * 20, None, None, *["more than 128,000,000 pixels"] * 18
        ),
        "PNG of 100 million pixels": lambda t: rows(t, [t.good, flat(10_000, 10_000, "PNG")], None, "pixels"),
        "good, bad, good": lambda t: rows(t, [t.good, text(b"no image"), t.good], None, "is not an image", None),
        "not base64, null, a number": lambda t: rows(
            t, ["no base64!", None, 5, ""], "base64", "must be base64", "must be base64", "empty"
        ),
        "image of 21 MB": lambda t: rows(t, [t.good, text(bytes(21 * 2**20))], None, "bytes"),
        "body of 400 MB, declared": lambda t: declared(t, 400_000_000),
        "body of 400 MB, chunked": lambda t: _refused_or_cut(t, chunked(400_000_000)),
        "3 bodies of 60 MB at once": lambda t: at_once(t, "A" * 60_000_000, 3),
        "10,000 rows": lambda t: status(t, frame(*[""] * ROWS_TOO_MANY), 400, "images in one request"),
        "a million objects": lambda t: status(t, b'{"inputs": [' + b"{}," * 1_000_000 + b"{}]}", 400, "JSON values"),
        "lists nested 5,000 deep": lambda t: any_status(t, b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", {400}),
        "an open list 49,000 deep": lambda t: status(t, b"[" * 49_000, 400, "nested too deeply"),
        "params nested": lambda t: any_status(
            t, b'{"inputs": "", "params": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, {400}
        ),
        "no JSON": lambda t: status(t, b"{", 400, "not valid JSON"),
        "not UTF-8": lambda t: status(t, b'{"inputs": "\xff"}', 400, ""),
        "no form": lambda t: status(t, {"images": [t.good]}, 400, "dataframe_split"),
        "wrong column": lambda t: status(
            t, {"dataframe_split": {"columns": ["x"], "data": [[t.good]]}}, 400, "columns must be just image"
        ),
        "unknown parameter": lambda t: status(t, frame(t.good, topk=3), 400, "top_k"),
        "no HTTP": lambda t: raw(t, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        "endless header": lambda t: raw(t, b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"),
    }
    for value in (None, True, 3.5, "3", [3], 0, 101, -1, 10**30):
        table[f"top_k = {str(value)[:12]!r}"] = partial(_bad_top_k, value)
    return table


def _bad_top_k(value: Any, target: Target) -> str:
    return status(target, frame(target.good, top_k=value), 400, "top_k")


def any_status(target: Target, body: bytes, allowed: set[int]) -> str:
    answer = target.post(body)
    return "" if answer.status_code in allowed else f"{answer.status_code}: {answer.text[:200]}"


def _refused_or_cut(target: Target, body: Iterator[bytes]) -> str:
    """413, or the connection is closed while the client still sends (it may see only that)."""
    try:
        answer = target.post(body)
    except requests.exceptions.ConnectionError:
        return ""
    return "" if answer.status_code == 413 else f"{answer.status_code}: {answer.text[:200]}"


def run_attacks(address: str, report: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
    """All attacks in turn, beside the connections that only wait; after each an ordinary request must be served."""
    target = Target(address)

    def outcome(name: str, attack: Callable[[Target], str]) -> Outcome:
        started_s = time.monotonic()
        try:
            detail = attack(target) or ("" if target.answers() else "no answer afterwards")
        except (requests.RequestException, OSError) as error:
            detail = f"{type(error).__name__}: {error}"
        found = Outcome(name, not detail, time.monotonic() - started_s, detail)
        report(found)
        return found

    with ThreadPoolExecutor(len(SLOW)) as pool:
        waiting = [pool.submit(outcome, name, partial(slow, start=start)) for name, start in SLOW.items()]
        outcomes = [outcome(name, attack) for name, attack in attacks().items()]
        return outcomes + [future.result() for future in waiting]


def peak_mb(pid: int) -> float:
    """Largest memory the process ever had, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def serving_bound_mb() -> float:
    """The memory limit of a worker in the manifest for KServe."""
    import yaml

    predictor = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))["spec"]["predictor"]
    (container,) = predictor["containers"]
    limit = str(container["resources"]["limits"]["memory"])
    assert limit.endswith("Gi"), limit
    return 1024 * float(limit.removesuffix("Gi"))


def serving(project: Project, seed: int) -> Figures:
    """The model of the finished run, served with one worker on loopback, under all attacks."""
    command = ["-m", "mdpr", "serve", "--alias", "challenger", "--params", str(project.root / "params.yaml")]
    with running(command, "/ping", project.root.parent) as server:
        assert Target(server.address).answers()
        idle_mb = peak_mb(server.pid)
        outcomes = run_attacks(server.address)
        figures = {
            "serving_attacks_survived": sum(outcome.survived for outcome in outcomes),
            "serving_attacks": len(outcomes),
            "serving_idle_mb": idle_mb,
            "serving_peak_mb": peak_mb(server.pid),
            "serving_bound_mb": serving_bound_mb(),
        }
    for outcome in outcomes:
        if not outcome.survived:
            tell("serving, %s, after %.1f s: %s", outcome.name, outcome.seconds, outcome.detail)
    return figures
