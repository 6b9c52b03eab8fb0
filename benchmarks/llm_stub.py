"""A loopback server with OpenAI's chat completions, for measurements and for attacks.

    python -m benchmarks.llm_stub --latency-ms 1000     prints its base URL, then serves until it is ended

GET /stats returns the number of calls, how many of them had come before (same body), and the seconds from the first
call to the last answer (/stats/reset restarts that clock).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

WORDS = (
    "amber", "brass", "copper", "dusty", "earthen", "faded", "glossy", "hollow", "ivory", "jagged", "knotted",
    "lacquered", "mottled", "narrow", "oval", "pale", "quiet", "ribbed", "slender", "tapered", "uneven", "velvet",
    "woven", "yellow", "arched", "blunt", "curved", "dented", "edged", "frosted", "grooved", "hinged", "inlaid",
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """The answer to one call, sent after `delay_s`; byte by byte, `pause_s` apart, if that is set.

    With `whole`, `body` is everything that is sent, HTTP or not, and then the connection is closed.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    delay_s: float = 0.0
    pause_s: float = 0.0
    whole: bool = False


Payload = Mapping[str, Any]
Behaviour = Callable[[int, Payload], Reply]  # number of the call, from 0, and its JSON


def completion(payload: Payload, message: Any, finish_reason: str = "stop", **fields: Any) -> Reply:
    """A chat completion with this message; `fields` replace what a sound one has beside it."""
    content = {
        "id": "stub",
        "object": "chat.completion",
        "created": 0,
        "model": payload["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return Reply(json.dumps(content | fields).encode())


def calling(payload: Payload, arguments: Any) -> dict[str, Any]:
    """A message that calls the tool of the question."""
    function = {"name": payload["tools"][0]["function"]["name"], "arguments": arguments}
    calls = [{"id": "call", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def answer(payload: Payload, arguments: str, delay_s: float = 0.0) -> Reply:
    """A chat completion: `arguments` (JSON text, or what should have been) as a call of the tool, or as content."""
    message = calling(payload, arguments) if "tools" in payload else {"role": "assistant", "content": arguments}
    return replace(completion(payload, message), delay_s=delay_s)


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    """An error as OpenAI words it."""
    body = json.dumps({"error": {"message": message, "type": "stub", "code": None}}).encode()
    return Reply(body, status, {"Content-Type": "application/json"} | dict(headers or {}))


def sentence_for(payload: Payload) -> str:
    """A sentence that is the same for the same question and differs between questions."""
    digest = hashlib.sha256(json.dumps(payload["messages"]).encode()).digest()
    words = [WORDS[byte % len(WORDS)] for byte in digest[:14]]
    return f"The {' and the '.join(' '.join(words[place : place + 2]) for place in range(0, 14, 2))} are on it."


def usual(latency_s: float) -> Behaviour:
    """Every question gets a sentence of its own, after `latency_s`."""

    def behave(_: int, payload: Payload) -> Reply:
        return answer(payload, json.dumps({"sentence": sentence_for(payload)}), latency_s)

    return behave


class Stub:
    """The calls of a server, and its behaviour."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.payloads: list[Payload] = []
        self.headers: list[str] = []
        self.url = ""
        self._seen: set[bytes] = set()
        self.repeated = 0
        self._first_s: float | None = None
        self._last_s = 0.0

    @property
    def calls(self) -> int:
        return len(self.payloads)

    def stats(self) -> dict[str, float]:
        span_s = self._last_s - self._first_s if self._first_s is not None else 0.0
        return {"calls": self.calls, "repeated": self.repeated, "span_s": span_s}

    def answered(self) -> None:
        self._last_s = time.monotonic()

    def reply_to(self, head: str, body: bytes) -> Reply:
        if head.startswith("GET /stats"):
            if head.startswith("GET /stats/reset"):
                self._first_s = None
            return Reply(json.dumps(self.stats()).encode())
        if self._first_s is None:
            self._first_s = time.monotonic()
        digest = hashlib.sha256(body).digest()
        self.repeated += digest in self._seen
        self._seen.add(digest)
        payload = json.loads(body)
        self.payloads.append(payload)
        self.headers.append(head)
        return self.behaviour(self.calls - 1, payload)


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with Content-Length and connections that stay open: enough for the clients of this server."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._buffer[:1].isalpha():  # TLS, which this server does not speak
            self._transport.close()
            return
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        reply = self._stub.reply_to(head.decode("latin-1"), rest[:length])
        asyncio.get_running_loop().call_later(reply.delay_s, self._send, reply)

    def _send(self, reply: Reply) -> None:
        self._stub.answered()
        headers = {**reply.headers, "Content-Length": str(len(reply.body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        content = f"HTTP/1.1 {reply.status} stub\r\n{head}\r\n".encode("latin-1") + reply.body
        self._write(reply.body if reply.whole else content, reply)

    def _write(self, content: bytes, reply: Reply) -> None:
        if self._transport.is_closing() or not content:
            return
        size = 1 if reply.pause_s else len(content)
        self._transport.write(content[:size])
        if reply.whole and size == len(content):
            self._transport.close()
        asyncio.get_running_loop().call_later(reply.pause_s, self._write, content[size:], reply)


async def _serve(stub: Stub, ready: Callable[[], None]) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(stub), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    stub.url = f"http://{host}:{port}/v1"
    ready()
    await server.serve_forever()


@contextmanager
def running(behaviour: Behaviour) -> Iterator[Stub]:
    """A server in a thread of this process."""
    stub, ready, loop = Stub(behaviour), threading.Event(), asyncio.new_event_loop()
    task = loop.create_task(_serve(stub, ready.set))

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait()
        yield stub
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=1000)
    arguments = parser.parse_args()
    stub = Stub(usual(arguments.latency_ms / 1000))
    asyncio.run(_serve(stub, lambda: print(stub.url, flush=True)))


if __name__ == "__main__":
    main()
