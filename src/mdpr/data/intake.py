"""Reading a source: regular files only, in several threads, with a record of everything that was not used."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
TASK_S = 0.005  # of work in one task: starting one costs as much as decoding a tiny image
MAX_TASK_ITEMS = 64


class IntakeLog:
    """The record of what a source holds that was not used, or not used as it is.

    left_out     a line for each faulty image or row, without the root: where a set lay is not what it is
    passed_over  things that are no images and no rows, by reason: how many, and the first of them
    interpreted  images that were used, by what had to be interpreted in them
    """

    def __init__(self, root: Path, *, skip_bad: bool) -> None:
        self._prefix = f"{root}{os.sep}"
        self._skip_bad = skip_bad
        self._first: list[str] = []  # faults, with the root
        self.left_out: list[str] = []
        self.passed_over: dict[str, Tally] = {}
        self.interpreted: dict[str, Tally] = {}

    def bad(self, error: DataError) -> None:
        """An image or a row that should be usable: it is left out, and `all_faults` may stop the stage for it."""
        text = str(error)
        self.left_out.append(text.replace(self._prefix, ""))
        if len(self._first) < EXAMPLES:
            self._first.append(text)
        if self._skip_bad and len(self.left_out) <= LOGGED:
            logger.warning("left out: %s", text)

    @contextmanager
    def all_faults(self) -> Iterator[None]:
        """Unless bad ones are skipped: raises `DataError` at the end, with how many were met and the first of them.

        They also replace an error inside, which may only follow from what is missing: a class without an image.
        """
        try:
            yield
        except DataError:
            self.stop_if_bad()
            raise
        self.stop_if_bad()

    @property
    def stops(self) -> bool:
        """Whether something bad was met, and is not skipped."""
        return bool(self.left_out) and not self._skip_bad

    def stop_if_bad(self) -> None:
        """Raises `DataError` if the log `stops`."""
        if not self.stops:
            return
        count, first = len(self.left_out), "; ".join(self._first)
        if count == 1:
            raise DataError(f"{first}, or set prepare.skip_bad: true to leave it out") from None
        raise DataError(
            f"{count:,} images or rows cannot be used: {first}{'; ...' if count > EXAMPLES else ''}; correct all of "
            "them, or set prepare.skip_bad: true to leave them out, and card.json lists them"
        ) from None

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
        if self._skip_bad and self.left_out:
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


def read_list(file: Path, missing: str) -> str:
    """A text file of the source; `missing` is what to do if there is none. Raises `DataError`."""
    if not os.path.lexists(file):
        raise DataError(f"{file} is missing: {missing}")
    return read_text(file, DataError)


class Links:
    """The rule for symbolic links that lead out of `root`: refused unless `follow` is set.

    A folder's real path is looked up once: a folder of images has thousands of paths.
    """

    def __init__(self, root: Path, *, follow: bool) -> None:
        self.root = root
        self._follow = follow
        self._real_folders: dict[str, str] = {}

    def check(self, path: str, where: str) -> None:
        """Raises `DataError` if `path` leads out of the root through a link, and links are not followed."""
        if self._follow:
            return
        folder, name = os.path.split(path)
        real = os.path.realpath(path) if os.path.islink(path) else os.path.join(self._real(folder), name)
        real_root = self._real(str(self.root))
        if real != real_root and not real.startswith(f"{real_root.rstrip(os.sep)}{os.sep}"):
            raise DataError(
                f"{where} leads out of {self.root} through a link: copy what it leads to, or set "
                "prepare.follow_links: true"
            )

    def _real(self, folder: str) -> str:
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return self._real_folders[folder]


def map_in_order(function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """`function` of every item, in order. Pillow decodes, and files are read, outside the interpreter's lock.

    Items go to threads in groups of about `TASK_S`; threads + 2 groups are under way, however slowly results are taken.
    """

    def work(group: list[ItemT]) -> tuple[list[ResultT], float]:
        started = time.thread_time()  # of the processor: on a busy machine tasks must not shrink
        return [function(item) for item in group], time.thread_time() - started

    threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
    iterator = iter(items)
    under_way: deque[Future[tuple[list[ResultT], float]]] = deque()
    size = 1
    with ThreadPoolExecutor(threads) as pool:
        try:
            while group := list(islice(iterator, size)):
                under_way.append(pool.submit(work, group))
                if len(under_way) > threads + 1:
                    results, seconds = under_way.popleft().result()
                    size = max(1, min(MAX_TASK_ITEMS, int(len(results) * TASK_S / max(seconds, 1e-9))))
                    yield from results
            while under_way:
                yield from under_way.popleft().result()[0]
        finally:  # taken no further, or an error: what has not started need not run
            for task in under_way:
                task.cancel()
