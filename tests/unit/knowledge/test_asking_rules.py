"""When to repeat a call, how long to wait, what it may cost, and what counts as an answer."""

from __future__ import annotations

import asyncio
import multiprocessing
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage
from pydantic import ValidationError

from mdpr.errors import KnowledgeError
from mdpr.knowledge.chat import NO_KEY, Unusable, find_key, read_answer
from mdpr.knowledge.limits import TokenBucket
from mdpr.knowledge.questions import Question
from mdpr.knowledge.retries import LONGEST_RETRY_AFTER_S, is_transient, retry_after_s
from mdpr.knowledge.spending import Budget, Prices, estimate, prompt_tokens
from mdpr.knowledge.store import Usage
from mdpr.params import DescribeParams, LlmParams

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUESTION = Question("k", 0, "cat", "functionality", "s" * 100, "u" * 100)


def error(status: int) -> openai.APIStatusError:
    response = httpx.Response(status, request=httpx.Request("POST", "http://x"))
    return openai.APIStatusError("no", response=response, body=None)


@pytest.mark.parametrize(
    ("raised", "again"),
    [
        (error(429), True),
        (error(500), True),
        (error(503), True),
        (TimeoutError(), True),
        (openai.APITimeoutError(httpx.Request("POST", "http://x")), True),
        (error(400), False),
        (error(401), False),
        (error(404), False),
        (Unusable("empty"), False),
        (ValueError("x"), False),
    ],
    ids=repr,
)
def test_only_429_5xx_and_time_outs_are_repeated(raised: Exception, again: bool) -> None:
    assert is_transient(raised) is again


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("99999999", LONGEST_RETRY_AFTER_S),
        (format_datetime(datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC), usegmt=True), 30.0),
        (format_datetime(datetime(2025, 1, 1, tzinfo=UTC), usegmt=True), 0.0),
        ("soon", None),
        ("-3", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value}, NOW) == seconds


def test_without_the_header_nothing_is_asked_for() -> None:
    assert retry_after_s({}, NOW) is None


def test_the_token_bucket_lets_through_its_rate_and_no_more() -> None:
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    async def take_all() -> None:
        bucket = TokenBucket(6000, clock=lambda: now_s, sleep=sleep)
        for _ in range(60):
            await bucket.take(100)

    asyncio.run(take_all())
    assert now_s == pytest.approx(59)  # 6,000 tokens at 100 a second, one second's worth at once


def test_no_limit_waits_for_nothing() -> None:
    async def never(seconds: float) -> None:
        raise AssertionError(seconds)

    asyncio.run(TokenBucket(0, clock=lambda: 0.0, sleep=never).take(1e9))


def test_a_budget_is_never_exceeded_and_what_was_not_spent_comes_back() -> None:
    prices = Prices(1.0, 10.0)
    budget = Budget(multiprocessing.get_context("spawn"), 0.01, prices, max_tokens=300)
    most = budget.most_usd(QUESTION)
    taken = 0
    while budget.set_aside(QUESTION):
        taken += 1
    assert taken == int(0.01 / most)
    budget.settle(QUESTION, Usage())
    assert budget.set_aside(QUESTION)
    assert not budget.set_aside(QUESTION)


def test_no_budget_is_no_limit() -> None:
    budget = Budget(multiprocessing.get_context("spawn"), 0.0, Prices(1e9, 1e9), max_tokens=300)
    assert all(budget.set_aside(QUESTION) for _ in range(100))


def test_an_estimate_counts_prompts_and_answers() -> None:
    usage = estimate([QUESTION] * 4, output_tokens=12.5)
    assert usage == Usage(4 * prompt_tokens(QUESTION), 50)
    assert Prices(2.0, 4.0).cost_usd(Usage(1_000_000, 500_000)) == 4.0


def test_the_key_comes_from_the_environment() -> None:
    llm = LlmParams.model_validate({"model": "m"})
    assert find_key(llm, {"OPENAI_API_KEY": "secret"}) == "secret"
    with pytest.raises(KnowledgeError, match="OPENAI_API_KEY is not set"):
        find_key(llm, {})
    own = llm.model_copy(update={"api_key_env": "MINE", "base_url": "http://x"})
    assert find_key(own, {"MINE": "secret", "OPENAI_API_KEY": "other"}) == "secret"
    with pytest.raises(KnowledgeError, match="MINE is not set"):
        find_key(own, {"OPENAI_API_KEY": "other"})
    assert find_key(llm.model_copy(update={"base_url": "http://x"}), {}) == NO_KEY


@pytest.mark.parametrize(
    "settings",
    [
        {"provider": "llm"},
        {"provider": "completed"},
        {"provider": "curated", "repair": True},
        {"budget_usd": 1.0},
        {"llm": {"base_url": "https://user:secret@host/v1"}},
        {"llm": {"base_url": "https://host/v1?key=secret"}},
        {"llm": {"api_key": "secret"}},
        {"llm": {"vendor": "anthropic", "structured_output": "json_schema"}},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_or_hold_a_key_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DescribeParams.model_validate(settings)


def called(arguments: dict[str, object]) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "functionality", "args": arguments, "id": "1"}])


def test_a_sentence_is_read_from_a_call_or_from_json() -> None:
    assert read_answer(called({"sentence": "  A cat hunts.\n"})) == "A cat hunts."
    assert read_answer(AIMessage('{"sentence": "A cat hunts."}')) == "A cat hunts."


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (AIMessage(""), "empty"),
        (AIMessage("A cat hunts."), "not valid JSON"),
        (AIMessage('{"sentence": "A cat'), "not valid JSON"),
        (AIMessage('["A cat hunts."]'), "another form"),
        (called({}), "another form"),
        (called({"sentence": " "}), "another form"),
        (called({"sentence": 7}), "another form"),
        (called({"sentence": "A cat hunts.", "more": 1}), "another form"),
        (called({"sentence": "cat " * 25_000}), "another form"),
    ],
)
def test_what_is_no_sentence_in_its_form_is_unusable_with_the_reason(message: AIMessage, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_answer(message)
