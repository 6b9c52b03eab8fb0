"""When to repeat a call, how long to wait, why it failed, and how a model is built."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import openai
import pytest
from pydantic import ValidationError

from mdpr.errors import KnowledgeError
from mdpr.knowledge.chat import (
    LONGEST_RETRY_AFTER_S,
    NO_KEY,
    Chat,
    explain,
    find_key,
    is_transient,
    pause_asked_for_s,
    retry_after_s,
    server_name,
    status_of,
)
from mdpr.knowledge.questions import load_prompts
from mdpr.knowledge.replies import Unusable
from mdpr.params import DescribeParams, LlmParams

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REQUEST = httpx.Request("POST", "http://x")
SERVER = LlmParams.model_validate({"model": "m", "base_url": "http://models.example:8000/v1"})


def error(status: int, text: str = "no", headers: dict[str, str] | None = None) -> openai.APIStatusError:
    response = httpx.Response(status, request=REQUEST, headers=headers)
    return openai.APIStatusError(text, response=response, body=None)


def caused_by(*causes: Exception) -> openai.APIConnectionError:
    """The client's error, and what led to it."""
    raised: Exception = openai.APIConnectionError(request=REQUEST)
    outer = raised
    for cause in causes:
        outer.__cause__ = cause
        outer = cause
    assert isinstance(raised, openai.APIConnectionError)
    return raised


@pytest.mark.parametrize(
    ("raised", "again"),
    [
        *((error(status), True) for status in (408, 409, 425, 429, 500, 502, 503, 529)),
        *((error(status), False) for status in (400, 401, 403, 404, 422)),
        (TimeoutError(), True),
        (openai.APITimeoutError(REQUEST), True),
        (caused_by(ConnectionRefusedError()), True),
        (caused_by(httpx.RemoteProtocolError("peer closed connection")), True),
        (caused_by(httpx.DecodingError("invalid gzip")), True),
        (Unusable("empty"), False),
        (ValueError("x"), False),
    ],
    ids=repr,
)
def test_only_what_may_pass_is_repeated(raised: Exception, again: bool) -> None:
    assert is_transient(raised) is again


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("0.5", 0.5),
        ("99999999", LONGEST_RETRY_AFTER_S),
        (format_datetime(datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC), usegmt=True), 30.0),
        (format_datetime(datetime(2025, 1, 1, tzinfo=UTC), usegmt=True), 0.0),
        ("soon", None),
        ("-3", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value}, "", NOW) == seconds


@pytest.mark.parametrize(
    "text", ["{'error': {'message': 'busy', 'retry_after': 3}}", '{"retryDelay": "3s"}', "Retry after 3 seconds"]
)
def test_without_the_header_the_body_is_read(text: str) -> None:
    assert retry_after_s({}, text, NOW) == 3
    assert retry_after_s({"retry-after": "7"}, text, NOW) == 7
    assert pause_asked_for_s(error(429, text)) == 3


def test_without_both_nothing_is_asked_for() -> None:
    assert retry_after_s({}, "no", NOW) is None
    assert pause_asked_for_s(error(429)) is None
    assert pause_asked_for_s(error(429, headers={"Retry-After": "2"})) == 2
    assert pause_asked_for_s(None) is None


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (TimeoutError(), ("models.example:8000", "60 s", "timeout_s")),
        (caused_by(httpx.ConnectTimeout("x")), ("models.example:8000", "60 s")),
        (caused_by(httpx.ConnectError("x"), ConnectionRefusedError(111, "x")), ("models.example:8000", "refused")),
        (caused_by(httpx.ConnectError("x"), socket.gaierror(-2, "x")), ("models.example:8000", "not found")),
        (caused_by(httpx.ConnectError("x"), ssl.SSLError(1, "wrong version number")), ("TLS", "wrong version")),
        (caused_by(httpx.TooManyRedirects("x")), ("redirects",)),
        (caused_by(httpx.ProxyError("no entry")), ("proxy", "no entry")),
        (caused_by(httpx.ReadError("x"), ConnectionResetError("reset")), ("models.example:8000", "reset")),
        (caused_by(ExceptionGroup("x", [ConnectionRefusedError()])), ("refused",)),
        (error(400, "content_filter: hate"), ("content filter", "hate")),
        (error(503, "busy"), ("busy",)),
        (Unusable("the answer is empty"), ("the answer is empty",)),
        (ZeroDivisionError("x"), ("ZeroDivisionError",)),
    ],
    ids=repr,
)
def test_a_failure_is_one_short_line_that_names_server_and_cause(raised: Exception, words: tuple[str, ...]) -> None:
    line = explain(raised, SERVER, "secret")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_line_never_holds_the_key() -> None:
    assert "secret" not in explain(error(400, "you sent secret"), SERVER, "secret")
    assert explain(error(400, "none of it"), SERVER, NO_KEY) == "none of it"
    assert explain(error(400, "abc"), SERVER, "") == "abc"


def test_a_server_is_named_by_host_and_port_or_by_its_vendor() -> None:
    named = {"https://a.b/v1": "a.b", "http://[::1]:9/v1": "[::1]:9", "": "openai"}
    for base_url, name in named.items():
        assert server_name(SERVER.model_copy(update={"base_url": base_url})) == name


def test_a_status_is_found_behind_a_wrapper_and_not_behind_what_was_handled() -> None:
    with pytest.raises(RuntimeError) as wrapped:
        raise RuntimeError("wrapped") from error(429)
    assert status_of(wrapped.value) == 429

    def replace_error() -> None:
        try:
            raise error(429)
        except openai.APIStatusError:
            raise Unusable("x") from None

    with pytest.raises(Unusable) as unusable:
        replace_error()
    assert status_of(unusable.value) is None


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


def test_a_vendor_that_finds_its_own_credentials_needs_no_key() -> None:
    llm = LlmParams.model_validate({"model": "m", "vendor": "bedrock_converse"})
    assert find_key(llm, {}) == ""
    assert find_key(llm.model_copy(update={"api_key_env": "MINE"}), {"MINE": "secret"}) == "secret"


@pytest.mark.parametrize(
    ("vendor", "words"),
    [
        ("bedrock_converse", "langchain-aws"),
        ("no_such_vendor", "no_such_vendor.*Supported"),
        ("azure_openai", "azure_openai"),
    ],
)
def test_a_vendor_that_cannot_be_used_is_one_line_that_says_why(vendor: str, words: str) -> None:
    llm = LlmParams.model_validate({"model": "m", "vendor": vendor})
    with pytest.raises(KnowledgeError, match=words) as raised:
        Chat(llm, "secret", load_prompts().schemas())
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


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
        {"llm": {"vendor": "Open AI"}},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_or_hold_a_key_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DescribeParams.model_validate(settings)
