"""The limit on tokens per minute, and two rounds of answers put together."""

from __future__ import annotations

import asyncio

import pytest

from mdpr.knowledge.ask import KEPT_REPLIES, Answers, TokenLimiter, UnusableReply


def test_calls_are_as_far_apart_as_their_tokens_take() -> None:
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    async def take_all() -> None:
        limiter = TokenLimiter(6000, clock_s=lambda: now_s, sleep=sleep)
        for _ in range(60):
            await limiter.wait_for(100)

    asyncio.run(take_all())
    assert now_s == pytest.approx(59)  # 100 tokens per second; the first call starts at once


def test_an_estimate_that_was_too_high_is_given_back() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def take_all() -> None:
        limiter = TokenLimiter(6000, clock_s=lambda: 0.0, sleep=sleep)
        await limiter.wait_for(200)
        limiter.use(-100)
        await limiter.wait_for(200)

    asyncio.run(take_all())
    assert waits == [pytest.approx(1)]


def test_no_limit_waits_for_nothing() -> None:
    async def never(seconds: float) -> None:
        raise AssertionError(seconds)

    asyncio.run(TokenLimiter(0, clock_s=lambda: 0.0, sleep=never).wait_for(10**9))


def reply(text: str) -> UnusableReply:
    return UnusableReply(0, "cat", "functionality", "empty", text)


def test_a_second_round_replaces_the_first_and_the_first_replies_are_kept() -> None:
    first = Answers({(0, "a"): "old", (1, "a"): "kept"}, {(2, "a"): "x"}, [reply(str(i)) for i in range(4)])
    second = Answers({(0, "a"): "new"}, {(0, "b"): "y"}, [reply("4"), reply("5")], again=True)
    both = first | second
    assert both.sentences == {(0, "a"): "new", (1, "a"): "kept"}
    assert both.missing == {(2, "a"): "x", (0, "b"): "y"}
    assert [item.text for item in both.replies] == ["0", "1", "2", "3", "4"][:KEPT_REPLIES]
    assert both.again
