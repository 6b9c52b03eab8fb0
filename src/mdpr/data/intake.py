"""How a source is read: regular files only, in several threads, with a record of everything that was not used."""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mdpr.artifacts import Tally
from mdpr.errors import DataError, printable
from mdpr.params.documents import read_text

logger = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

LOGGED = 20  # faults one by one; all are in card.json
EXAMPLES = 3
MAX_REASONS = 20
MAX_THREADS = 16
TASK_ITEMS = 16  # together in one task: starting a task costs as much as decoding a tiny image

KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class IntakeLog:
    """The record of what a source holds that was not used, or not used as it is.

    left_out     a line for each faulty image or row, without the root: where a set lay is not what it is
    passed_over  things that are no images and no rows, by reason: how many, and the first of them
    interpreted  images that were used, by what had to be interpreted in them
    """

    def __init__(self, root: Path, *, skip_bad: bool) -> None:
        self._prefix = f"{root}{os.sep}"
        self._skip_bad = skip_bad
        self.left_out: list[str] = []
        self.passed_over: dict[str, Tally] = {}
        self.interpreted: dict[str, Tally] = {}

    def bad(self, error: DataError) -> None:
        """An image or a row that should be usable: raises `error`, or lists it if bad ones are skipped."""
        if not self._skip_bad:
            raise error
        self.left_out.append(str(error).replace(self._prefix, ""))
        if len(self.left_out) <= LOGGED:
            logger.warning("left out: %s", error)

    def pass_over(self, reason: str, name: str | Path) -> None:
        """Something that is no image and no row of a list; it never stops the stage."""
        known = reason in self.passed_over or len(self.passed_over) < MAX_REASONS
        self._count(self.passed_over, reason if known else "other files", name)

    def interpret(self, note: str, name: str | Path) -> None:
        """An image that was used, but not simply as it is."""
        self._count(self.interpreted, note, name)

    def report(self) -> list[str]:
        """A line for each reason, and one for the faults."""
        lines = [f"passed over: {tally.count:,} {_shown(reason, tally)}" for reason, tally in self.passed_over.items()]
        lines += [f"images with {_shown(note, tally)}: {tally.count:,}" for note, tally in self.interpreted.items()]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out):,} images or rows that cannot be used; card.json lists them")
        return lines

    def _count(self, tallies: dict[str, Tally], reason: str, name: str | Path) -> None:
        before = tallies.get(reason, Tally(count=0, examples=()))
        examples = before.examples
        if before.count < EXAMPLES:
            examples += (printable(name).replace(self._prefix, ""),)
        tallies[reason] = Tally(count=before.count + 1, examples=examples)


def _shown(reason: str, tally: Tally) -> str:
    return f"{reason} ({', '.join(tally.examples)}{', ...' if tally.count > EXAMPLES else ''})"


def utf8_name(name: str, where: str) -> str:
    """`name`, or `DataError` if its bytes are not UTF-8 (prepared files hold text)."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{printable(where)}: the name is not UTF-8: rename the file") from None
    return name


def read_file(file: Path, where: str, limit_bytes: int) -> bytes:
    """The content of a regular file, or of what a link leads to.

    Raises `DataError`, before a byte is read, for anything else (FIFO, device, socket, folder) and for a file of more
    than `limit_bytes`; also for one that is missing or may not be read.
    """
    utf8_name(str(file), where)
    try:
        status = file.stat()
        for is_kind, kind in KINDS:
            if is_kind(status.st_mode):
                raise DataError(f"{where} is {kind}, not a regular file: remove it")
        if status.st_size > limit_bytes:
            raise DataError(f"{where} has {status.st_size:,} bytes, more than {limit_bytes:,}: remove or shrink it")
        return file.read_bytes()
    except FileNotFoundError:
        if file.is_symlink():
            raise DataError(f"{where} is a link that leads nowhere: remove it") from None
        raise DataError(f"{where} does not exist: add the file or correct its path") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}") from None


def read_list(file: Path, missing: str) -> str:
    """A text file of the source; `missing` is what to do if there is none. Raises `DataError`."""
    if not os.path.lexists(file):
        raise DataError(f"{file} is missing: {missing}")
    return read_text(file, DataError)


def check_link(path: Path, root: Path, where: str, *, follow: bool) -> None:
    """Raises `DataError` if `path` leads out of `root` through a link, unless links are followed (or in a circle)."""
    if follow:
        return
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    if real != real_root and not real.startswith(f"{real_root.rstrip(os.sep)}{os.sep}"):
        raise DataError(
            f"{where} leads out of {root} through a link: copy what it leads to, or set prepare.follow_links: true"
        )


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
