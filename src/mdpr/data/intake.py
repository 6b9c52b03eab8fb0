"""What a source holds: reading it in several threads, and a record of what could not be used."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mdpr.errors import DataError

logger = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

LOGGED = 20  # messages one by one; all are in card.json
MAX_THREADS = 16
TASK_ITEMS = 16  # together in one task: starting a task costs as much as decoding a tiny image


class Faults:
    """Collects what of a source is not used. `listed` has a line each, without the root: where a set lay is not
    what it is."""

    def __init__(self, root: Path, *, skip_bad: bool) -> None:
        self._prefix = f"{root}{os.sep}"
        self._skip_bad = skip_bad
        self.listed: list[str] = []

    def bad(self, error: DataError) -> None:
        """An image or a row that should be usable: raises `error`, or lists it where bad ones are skipped."""
        if not self._skip_bad:
            raise error
        self.leave_out(str(error))

    def leave_out(self, message: str) -> None:
        """Something that is no image and no row of a list, and never stops the stage."""
        self.listed.append(message.replace(self._prefix, ""))
        if len(self.listed) <= LOGGED:
            logger.warning("left out: %s", message)


def printable(name: str | Path) -> str:
    """A file name for a message: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def utf8_name(name: str, where: str) -> str:
    """`name`, or `DataError` where its bytes are not UTF-8 (prepared files hold text)."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: the name is not UTF-8: rename the file") from None
    return name


def map_in_order(function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """`function` of every item, in order. Pillow decodes, and files are read, outside the interpreter's lock.

    At most (threads + 2) * `TASK_ITEMS` items are under way, however slowly results are taken.
    """
    threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
    iterator = iter(items)
    under_way: deque[Future[list[ResultT]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while group := list(islice(iterator, TASK_ITEMS)):
                under_way.append(pool.submit(lambda group: [function(item) for item in group], group))
                if len(under_way) > threads + 1:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:  # taken no further, or an error: what has not started need not run
            for task in under_way:
                task.cancel()
