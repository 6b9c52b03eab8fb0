"""Results in order, work within bounds, errors at once."""

import threading
import time
from pathlib import Path

import pytest

from mdpr.data.intake import MAX_TASK_ITEMS, MAX_THREADS, IntakeLog, map_in_order
from mdpr.errors import DataError


def test_results_keep_the_order_of_the_items() -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(map_in_order(slow_at_first, range(500))) == [item * item for item in range(500)]
    assert list(map_in_order(str, iter(()))) == []


def test_no_more_is_read_than_is_under_way() -> None:
    read = 0

    def items():
        nonlocal read
        for item in range(100_000):
            read += 1
            yield item

    results = map_in_order(str, items())
    for taken in range(1, 200):
        next(results)
        assert read - taken <= (MAX_THREADS + 2) * MAX_TASK_ITEMS
    results.close()
    assert read < 10_000


def test_work_is_done_in_other_threads_and_an_error_ends_it() -> None:
    names = set(map_in_order(lambda _: threading.current_thread().name, range(200)))
    assert threading.current_thread().name not in names
    results = map_in_order(lambda item: 1 // (item - 40), range(100_000))
    with pytest.raises(ZeroDivisionError):
        list(results)


def meet(log: IntakeLog, bad: int, then: DataError | None = None) -> None:
    with log.all_faults():
        for number in range(1, bad + 1):
            log.bad(DataError(f"a/{number}.png cannot be decoded: restore it"))
        if then:
            raise then


def test_bad_images_stop_with_the_setting_that_leaves_them_out() -> None:
    log = IntakeLog(Path("a"), skip_bad=False)
    with pytest.raises(DataError, match=r"^a/1\.png .*restore it, or set prepare\.skip_bad: true"):
        meet(log, 1, then=DataError("a class has no image"))
    assert log.report() == []
    with pytest.raises(DataError, match=r"^4 images .*a/3\.png [^;]*; \.\.\.; .*prepare\.skip_bad: true"):
        meet(IntakeLog(Path("a"), skip_bad=False), 4)
    with pytest.raises(DataError, match="a class has no image"):
        meet(IntakeLog(Path("a"), skip_bad=False), 0, then=DataError("a class has no image"))
    log = IntakeLog(Path("a"), skip_bad=True)
    meet(log, 1)
    assert log.left_out == ["1.png cannot be decoded: restore it"]
