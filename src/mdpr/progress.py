"""Progress of long work: a bar on a terminal, a log line every few seconds elsewhere (CI, containers, DVC logs)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

logger = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
LOG_EVERY_S = 10.0


def track(items: Iterable[ItemT], description: str, total: int | None = None) -> Iterator[ItemT]:
    """Yield `items`, showing how far they are; `total` where the iterable does not know its length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(items, description, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= LOG_EVERY_S:
            last = time.monotonic()
            logger.info("%s: %d%s", description, done, f" of {total}" if total else "")
