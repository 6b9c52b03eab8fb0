"""describe and the replies of all kinds of models and servers: what holds a sentence is read, the rest is named.

A real HTTP server answers. Every fault costs the questions it meets, never the run, and never a traceback.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from benchmarks.describe import make_inputs
from benchmarks.llm_stub import Behaviour, Payload, Reply, calling, completion, failure, running, sentence_for
from benchmarks.llm_wrappers import WRAPPERS, content, said

from mdpr.artifacts import parse_knowledge, read_json, read_knowledge
from mdpr.errors import AnswersMissing, CheckFailed
from mdpr.params import DIMENSIONS, parse_params
from mdpr.stages.stage import load_stage, run_stage

pytestmark = pytest.mark.integration
Describe = Callable[..., Path]
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Describe:
    """describe(url, classes, llm=..., ...) -> the knowledge folder."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")

    def run(url: str, classes: int = 2, llm: dict[str, Any] | None = None, **settings: Any) -> Path:
        if not (tmp_path / "prepared").exists():
            make_inputs(tmp_path, [f"thing {index}" for index in range(classes)])
        chosen = {"model": "stub", "base_url": url, "store": str(tmp_path / "answers.sqlite"), "max_retries": 1}
        params = parse_params(
            {"describe": {"provider": "llm", "strict": False, "llm": chosen | (llm or {}), **settings}}
        )
        ports = {port: tmp_path / port for port in ("prepared", "probe", "knowledge")}
        run_stage(load_stage("describe"), ports, params)
        return ports["knowledge"]

    return run


@pytest.mark.parametrize(("form", "classes"), [("function_calling", 10), ("json_schema", 2)])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_sentence_is_read_whatever_is_around_it(
    describe: Describe, wrapper: str, form: str, classes: int
) -> None:
    with running(lambda _, payload: completion(payload, WRAPPERS[wrapper](payload))) as stub:
        folder = describe(stub.url, classes, {"structured_output": form})
        knowledge = read_knowledge(folder / "knowledge.json")
        assert stub.calls == 5 * classes
        asked = {sentence_for(payload) for payload in stub.payloads}
    assert {sentence for row in knowledge.sentences_CV() for sentence in row} == asked
    assert read_json(folder / "audit.json")["unusable_replies"] == []


def cut(payload: Payload) -> Reply:
    return completion(payload, content(said(payload)[:20]), "length")


UNUSABLE: dict[str, tuple[Callable[[Payload], Reply], str]] = {
    "cut off": (cut, "describe.llm.max_tokens = 200: raise"),
    "cut off, the JSON closed": (
        lambda payload: completion(payload, calling(payload, json.dumps({"sentence": "It has a"})), "length"),
        "describe.llm.max_tokens = 200: raise",
    ),
    "cut off while thinking": (
        lambda payload: completion(payload, {"role": "assistant", "content": "", "reasoning_content": "hm"}, "length"),
        "thinks first",
    ),
    "a thinking block without an end": (
        lambda payload: completion(payload, content("<think>so what is it")),
        "did not finish thinking",
    ),
    "refusal": (
        lambda payload: completion(payload, {"role": "assistant", "content": None, "refusal": "I cannot help."}),
        "refused: 'I cannot help.'",
    ),
    "refusal as text": (lambda payload: completion(payload, content("I'm sorry, I can't help.")), "I'm sorry"),
    "filter": (lambda payload: completion(payload, content(""), "content_filter"), "content filter"),
    "filter of the question": (
        lambda payload: failure(400, "The response was filtered: content_filter (hate)"),
        "content filter of 127.0.0.1",
    ),
    "no message": (lambda payload: completion(payload, None), "no message"),
    "no choices": (lambda payload: completion(payload, None, choices=[]), "no choices"),
    "an error as an answer": (lambda payload: Reply(b'{"error": {"message": "out of memory"}}'), "out of memory"),
    "a list": (lambda payload: Reply(b"[]"), "chat completion"),
    "null": (lambda payload: Reply(b"null"), "chat completion"),
    "nothing": (lambda payload: Reply(b""), "chat completion"),
    "deeply nested": (lambda payload: Reply(b"[" * 100_000), "chat completion"),
}


def only_about_functions(bad: Callable[[Payload], Reply]) -> Behaviour:
    """Questions on the function are answered by `bad`, all others by a sentence."""

    def behave(_: int, payload: Payload) -> Reply:
        about_function = " for, or what does it do?" in payload["messages"][1]["content"]
        return bad(payload) if about_function else completion(payload, calling(payload, said(payload)))

    return behave


@pytest.mark.parametrize("fault", UNUSABLE)
def test_what_holds_no_sentence_is_named_kept_and_costs_only_its_questions(
    describe: Describe, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad, reason = UNUSABLE[fault]
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
    if fault != "filter of the question":  # an error of the server holds no reply
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
    with running(lambda _, payload: completion(payload, calling(payload, said(payload)))) as stub:
        done = read_knowledge(describe(stub.url, provider="completed", path=str(edited)) / "knowledge.json")
        assert stub.calls == 1
    assert done.classes[0].sentences["functionality"] == "A thing 0 holds paper together on a desk."
    assert [item.completed for item in done.classes] == [(), ("functionality",)]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 529])
def test_a_server_that_is_busy_once_costs_nothing(describe: Describe, status: int) -> None:
    seen: set[str] = set()

    def behave(_: int, payload: Payload) -> Reply:
        question = payload["messages"][1]["content"]
        if question not in seen:
            seen.add(question)
            return failure(status, "busy: retry_after: 0.01")
        return completion(payload, calling(payload, said(payload)))

    with running(behave) as stub:
        read_knowledge(describe(stub.url) / "knowledge.json")
        assert stub.calls == 20


GARBAGE = {
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\xff\xfe\r\n0\r\n\r\n",
    "no HTTP": b"\x00\x01\x02 hello\r\n\r\n",
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    "no gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "closed": b"",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_http_is_repeated_and_then_named(describe: Describe, garbage: str) -> None:
    bad = only_about_functions(lambda payload: Reply(GARBAGE[garbage] or b" ", whole=True))
    with running(bad) as stub, pytest.raises(AnswersMissing, match=r"127\.0\.0\.1:\d+.*run again"):
        describe(stub.url)
    assert stub.calls == 8 + 2 * 2


def test_compressed_answers_are_read(describe: Describe) -> None:
    def behave(_: int, payload: Payload) -> Reply:
        body = completion(payload, calling(payload, said(payload))).body
        return Reply(gzip.compress(body), headers=JSON | {"Content-Encoding": "gzip"})

    with running(behave) as stub:
        read_knowledge(describe(stub.url) / "knowledge.json")


def closed_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("case", ["refused", "unknown host", "no TLS", "redirects"])
def test_a_server_that_cannot_be_reached_is_named_with_the_cause(describe: Describe, case: str) -> None:
    port = closed_port()
    circle = Reply(b"", 307, {"Location": "/v1/chat/completions"})
    with running(lambda _, payload: circle) as stub:
        url, words = {
            "refused": (f"http://127.0.0.1:{port}/v1", f"127.0.0.1:{port} refused"),
            "unknown host": ("http://no-such-host.invalid:8000/v1", "no-such-host.invalid:8000 was not found"),
            "no TLS": (stub.url.replace("http:", "https:"), "TLS"),
            "redirects": (stub.url, "redirects in a circle"),
        }[case]
        with pytest.raises(AnswersMissing) as raised:
            describe(url, llm={"max_retries": 0})
    assert words in str(raised.value)


@pytest.mark.parametrize("slow", [{"delay_s": 30.0}, {"pause_s": 0.1}], ids=["silent", "trickles"])
def test_a_server_that_takes_too_long_is_named_with_the_limit(describe: Describe, slow: dict[str, float]) -> None:
    bad = only_about_functions(lambda payload: Reply(completion(payload, None).body, **slow))
    with running(bad) as stub, pytest.raises(AnswersMissing, match=r"127\.0\.0\.1:\d+ within 0\.5 s.*timeout_s"):
        describe(stub.url, llm={"max_retries": 0, "timeout_s": 0.5})


@pytest.mark.parametrize("tokens", [10**30, 2**63, -5, "many", 1.5], ids=str)
def test_token_counts_that_cannot_be_true_cost_no_sentence_and_count_as_the_most(
    describe: Describe, tokens: object, caplog: pytest.LogCaptureFixture
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": tokens}
    prices = {"input_usd_per_million": 1.0, "output_usd_per_million": 1.0}

    def behave(_: int, payload: Payload) -> Reply:
        return completion(payload, calling(payload, said(payload)), usage=usage)

    with running(behave) as stub:
        read_knowledge(describe(stub.url, llm=prices) / "knowledge.json")
        assert [record.message for record in caplog.records if "token counts" in record.message][1:] == []
        assert "token counts" in caplog.text
        with pytest.raises(AnswersMissing, match="budget is used up"):
            describe(stub.url, llm=prices | {"seed": 1}, budget_usd=0.002)
        assert 10 < stub.calls < 20


def test_an_error_that_nobody_foresaw_costs_one_question(describe: Describe) -> None:
    """A reply in a character set that does not exist."""
    headers = {"Content-Type": "application/json; charset=no-such"}
    bad = only_about_functions(lambda payload: Reply(b"\xff\xfe\x00", headers=headers))
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
    with running(lambda _, payload: completion(payload, calling(payload, said(payload)))) as stub:
        describe(stub.url, llm={"max_tokens": 77})
        assert {(item["max_tokens"], item["max_completion_tokens"]) for item in stub.payloads} == {(77, 77)}


def test_a_notebook_s_running_loop_is_no_obstacle(describe: Describe) -> None:
    async def cell(url: str) -> Path:
        return describe(url)

    with running(lambda _, payload: completion(payload, calling(payload, said(payload)))) as stub:
        folder = asyncio.run(cell(stub.url))
    assert len(read_knowledge(folder / "knowledge.json").classes) == 2
