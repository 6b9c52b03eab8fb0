"""describe and the replies of all kinds of models and servers: what holds a sentence is read, the rest is named.

A real HTTP server answers. Every fault costs the questions it meets, never the run, and never a traceback.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from benchmarks import llm_faults
from benchmarks.llm_faults import (
    BUSY,
    GARBAGE,
    IMPOSSIBLE_TOKENS,
    NO_CHARSET,
    REFUSED,
    SLOW,
    UNREACHABLE,
    UNUSABLE,
    compressed,
    counting,
    cut,
    failing_once,
    only_about_functions,
    redirecting,
    sending,
    sound,
    taking_too_long,
    unreachable,
    wrapped,
)
from benchmarks.llm_stub import Payload, Reply, calling, completion, running, sentence_for
from benchmarks.llm_wrappers import WRAPPERS

from mdpr.artifacts import parse_knowledge, read_json, read_knowledge
from mdpr.errors import AnswersMissing, CheckFailed
from mdpr.params import DIMENSIONS

pytestmark = pytest.mark.integration
Describe = Callable[..., Path]
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Describe:
    """describe(url, classes, llm=..., ...) -> the knowledge folder."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    return partial(llm_faults.describe, tmp_path)


@pytest.mark.parametrize(("form", "classes"), [("function_calling", 10), ("json_schema", 2)])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_sentence_is_read_whatever_is_around_it(
    describe: Describe, wrapper: str, form: str, classes: int
) -> None:
    with running(wrapped(wrapper)) as stub:
        folder = describe(stub.url, classes, {"structured_output": form})
        knowledge = read_knowledge(folder / "knowledge.json")
        assert stub.calls == 5 * classes
        asked = {sentence_for(payload) for payload in stub.payloads}
    assert {sentence for row in knowledge.sentences_CV() for sentence in row} == asked
    assert read_json(folder / "audit.json")["unusable_replies"] == []


@pytest.mark.parametrize("fault", UNUSABLE | REFUSED)
def test_what_holds_no_sentence_is_named_kept_and_costs_only_its_questions(
    describe: Describe, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad, reason = (UNUSABLE | REFUSED)[fault]
    caplog.set_level(logging.DEBUG, "mdpr")
    with running(only_about_functions(bad)) as stub, pytest.raises(AnswersMissing) as raised:
        describe(stub.url)
    assert reason in str(raised.value)
    assert "run again" not in str(raised.value)  # the same question has the same answer
    assert stub.calls == 10
    audit = read_json(tmp_path / "knowledge.failed" / "audit.json")
    gaps = [item for item in audit["findings"] if item["check"] == "missing"]
    assert [(item["class_index"], item["dimension"]) for item in gaps] == [(0, "functionality"), (1, "functionality")]
    assert all(reason in item["message"] for item in gaps)
    if fault in UNUSABLE:
        assert [item["reason"] for item in audit["unusable_replies"]] == [item["message"][13:] for item in gaps]
        assert len([record for record in caplog.records if "unusable reply" in record.message]) == 2


def test_a_draft_holds_every_answer_and_can_be_edited_and_read_back(describe: Describe, tmp_path: Path) -> None:
    with running(only_about_functions(cut)) as stub, pytest.raises(AnswersMissing, match=r"knowledge\.json"):
        describe(stub.url)
    draft = tmp_path / "knowledge.failed" / "knowledge.json"
    knowledge = parse_knowledge(draft)
    assert [item.sentences["functionality"] for item in knowledge.classes] == ["", ""]
    assert sum(bool(text) for row in knowledge.sentences_CV() for text in row) == 8
    page = (tmp_path / "knowledge.failed" / "index.html").read_text("utf-8")
    assert "2 replies of the chat model without a sentence" in page
    edited = tmp_path / "edited.json"
    content = json.loads(draft.read_text("utf-8"))
    content["classes"][0]["sentences"]["functionality"] = "A thing 0 holds paper together on a desk."
    edited.write_text(json.dumps(content), "utf-8")
    with running(lambda _, payload: sound(payload)) as stub:
        done = read_knowledge(describe(stub.url, provider="completed", path=str(edited)) / "knowledge.json")
        assert stub.calls == 1
    assert done.classes[0].sentences["functionality"] == "A thing 0 holds paper together on a desk."
    assert [item.completed for item in done.classes] == [(), ("functionality",)]


@pytest.mark.parametrize("status", BUSY)
def test_a_server_that_is_busy_once_costs_nothing(describe: Describe, status: int) -> None:
    with running(failing_once(status)) as stub:
        read_knowledge(describe(stub.url) / "knowledge.json")
        assert stub.calls == 20


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_http_is_repeated_and_then_named(describe: Describe, garbage: str) -> None:
    bad = only_about_functions(sending(GARBAGE[garbage]))
    with running(bad) as stub, pytest.raises(AnswersMissing, match=r"127\.0\.0\.1:\d+.*run again"):
        describe(stub.url)
    assert stub.calls == 8 + 2 * 2


def test_compressed_answers_are_read(describe: Describe) -> None:
    with running(compressed) as stub:
        read_knowledge(describe(stub.url) / "knowledge.json")


@pytest.mark.parametrize("case", UNREACHABLE)
def test_a_server_that_cannot_be_reached_is_named_with_the_cause(describe: Describe, case: str) -> None:
    with running(redirecting) as stub:
        url, words = unreachable(case, stub.url)
        with pytest.raises(AnswersMissing) as raised:
            describe(url, llm={"max_retries": 0})
    assert words in str(raised.value)


@pytest.mark.parametrize("how", SLOW)
def test_a_server_that_takes_too_long_is_named_with_the_limit(describe: Describe, how: str) -> None:
    bad = only_about_functions(taking_too_long(how))
    with running(bad) as stub, pytest.raises(AnswersMissing, match=r"127\.0\.0\.1:\d+ within 0\.5 s.*timeout_s"):
        describe(stub.url, llm={"max_retries": 0, "timeout_s": 0.5})


@pytest.mark.parametrize("tokens", IMPOSSIBLE_TOKENS, ids=str)
def test_token_counts_that_cannot_be_true_cost_no_sentence_and_count_as_the_most(
    describe: Describe, tokens: object, caplog: pytest.LogCaptureFixture
) -> None:
    prices = {"input_usd_per_million": 1.0, "output_usd_per_million": 1.0}
    with running(counting(tokens)) as stub:
        read_knowledge(describe(stub.url, llm=prices) / "knowledge.json")
        assert [record.message for record in caplog.records if "token counts" in record.message][1:] == []
        assert "token counts" in caplog.text
        with pytest.raises(AnswersMissing, match="budget is used up"):
            describe(stub.url, llm=prices | {"seed": 1}, budget_usd=0.002)
        assert 10 < stub.calls < 20


def test_an_error_that_nobody_foresaw_costs_one_question(describe: Describe) -> None:
    """A reply in a character set that does not exist."""
    bad = only_about_functions(lambda payload: NO_CHARSET)
    with running(bad) as stub, pytest.raises(AnswersMissing, match="and 1 more"):
        describe(stub.url)


def test_a_sentence_with_invisible_characters_is_an_error_of_the_audit(describe: Describe, tmp_path: Path) -> None:
    def behave(_: int, payload: Payload) -> Reply:
        text = json.dumps({"sentence": sentence_for(payload).replace(" and", "\u200b and\u202e", 1)})
        return completion(payload, calling(payload, text))

    with running(behave) as stub, pytest.raises(CheckFailed, match=r"U\+200B.*describe\.strict"):
        describe(stub.url, strict=True)
    findings = read_json(tmp_path / "knowledge.failed" / "audit.json")["findings"]
    assert len([item for item in findings if item["check"] == "hidden"]) == 2 * len(DIMENSIONS)


def test_both_names_of_the_token_limit_are_sent_to_other_servers(describe: Describe) -> None:
    with running(lambda _, payload: sound(payload)) as stub:
        describe(stub.url, llm={"max_tokens": 77})
        assert {(item["max_tokens"], item["max_completion_tokens"]) for item in stub.payloads} == {(77, 77)}


def test_a_notebook_s_running_loop_is_no_obstacle(describe: Describe) -> None:
    async def cell(url: str) -> Path:
        return describe(url)

    with running(lambda _, payload: sound(payload)) as stub:
        folder = asyncio.run(cell(stub.url))
    assert len(read_knowledge(folder / "knowledge.json").classes) == 2
