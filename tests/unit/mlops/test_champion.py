"""A champion's answers, found again among today's test images; models timed in turn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mdpr.mlops.champion import REQUESTS, WARM_UP, TestSet, find_answers, time_in_turn

ROWS = 12


def table(image_N: np.ndarray) -> pd.DataFrame:
    label_N = np.arange(ROWS) % 3
    answers = {"label": label_N, "base_top1": label_N[::-1], "base_probability": 0.5}
    return pd.DataFrame({"index": np.arange(ROWS), "image": image_N, **answers})


def test_images_are_found_by_their_digest_in_any_order() -> None:
    kept = table(100 + np.arange(ROWS))
    order_N = np.random.default_rng(0).permutation(ROWS)[:7]
    today = TestSet(table(100 + np.arange(ROWS)).iloc[order_N].assign(index=range(7)), Path("none"))
    found = find_answers(kept, today)
    assert found is not None
    assert found["base_top1"].tolist() == kept["base_top1"].to_numpy()[order_N].tolist()


@pytest.mark.parametrize("image", [99, 105.5, 1_000])
def test_one_image_that_was_not_answered_leaves_none(image: float) -> None:
    digests_N = 100 + 2 * np.arange(ROWS)
    today = digests_N.copy()
    today[3] = int(image)
    assert find_answers(table(digests_N), TestSet(table(today), Path("none"))) is None


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
