"""Work on images in threads, results in order, a bounded number of them in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_THREADS = 16
TASK_ITEMS = 16  # together in one task: starting a task costs as much as decoding a tiny image


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
