"""Progress of long work: a bar on a terminal, a log line every few seconds elsewhere (CI, containers, DVC logs)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

logger = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
LOG_EVERY_S = 10.0


def track(
    items: Iterable[ItemT], description: str, total: int | None = None, status: Callable[[], str] | None = None
) -> Iterator[ItemT]:
    """Yield `items`, showing how far they are; `total` is for iterables without a length.

    `status` gives text to show after the count (tokens, cost).
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from _bar(items, description, total, status)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= LOG_EVERY_S:
            last = time.monotonic()
            more = f", {status()}" if status else ""
            logger.info("%s: %d%s%s", description, done, f" of {total}" if total else "", more)


def _bar(
    items: Iterable[ItemT], description: str, total: int | None, status: Callable[[], str] | None
) -> Iterator[ItemT]:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    columns = [*Progress.get_default_columns(), TextColumn("{task.fields[status]}")]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, status="")
        for item in items:
            yield item
            progress.update(task, advance=1, status=status() if status else "")
