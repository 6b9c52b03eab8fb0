"""SIGTERM, the notice that a node is about to go: training ends its step, saves and stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether this process was asked to stop."""

    made: bool = False


@contextmanager
def listen_for_sigterm() -> Iterator[StopRequest]:
    """A request that SIGTERM sets while the block runs; before and after, SIGTERM does what it did.

    Outside the main thread, where Python takes no handlers, the request is never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signum: int, frame: FrameType | None) -> None:
        request.made = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
