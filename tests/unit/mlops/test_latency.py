"""Models timed in turn, and the bound of a median."""

from __future__ import annotations

import numpy as np
import pytest

from mdpr.mlops.latency import REQUESTS, WARM_UP, median_bound, time_in_turn


def test_requests_are_made_in_turn_and_the_first_do_not_count() -> None:
    now_s, order = 0.0, []

    def request(name: str, cost_s: float) -> None:
        nonlocal now_s
        now_s += cost_s + (10 if len(order) < 2 * WARM_UP else 0)
        order.append(name)

    ms_RM = time_in_turn([lambda: request("a", 0.001), lambda: request("b", 0.002)], clock_s=lambda: now_s)
    assert REQUESTS >= 50
    assert ms_RM == pytest.approx(np.tile([1.0, 2.0], (REQUESTS, 1)))
    rows = ["".join(order[start : start + 2]) for start in range(0, len(order), 2)]
    assert set(rows[::2]) != set(rows[1::2])
    assert {frozenset(row) for row in rows} == {frozenset("ab")}


def test_the_bound_of_a_median_is_below_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    bounds = [median_bound(random.lognormal(0.0, 1.0, 100), 0.95) for _ in range(2000)]
    assert np.mean([lower <= 1.0 for _, lower in bounds]) >= 0.95
    assert all(lower <= median for median, lower in bounds)
