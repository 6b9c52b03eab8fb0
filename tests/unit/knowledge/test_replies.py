"""From a reply to its sentence: wrappers come off, and what is no sentence is refused with the reason."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from mdpr.knowledge.questions import Usage
from mdpr.knowledge.replies import Reply, Unusable, read_sentence, reply_from_body, reply_from_message

SENTENCE = "A cat hunts at night, with its ears turned forward."
SAID = json.dumps({"sentence": SENTENCE})
WRAPPED = {
    "JSON": SAID,
    "spaces and line breaks": json.dumps({"sentence": f"  {SENTENCE}\n"}),
    "a line break inside": SAID.replace("night, with", "night,\nwith"),
    "plain": SENTENCE,
    "quoted": f'"{SENTENCE}"',
    "thinking": f"<think>\nOne sentence about {{cat}}: [1].\n</think>\n\n{SAID}",
    "thinking without its opening": f'{{"sentence": "A draft."}}\n</think>\n{SAID}',
    "two blocks": f"<think>a</think><reasoning>b</reasoning>{SAID}",
    "thinking by another name": f"<Thinking>hm</Thinking>{SAID}",
    "thinking, then plain": f"<think>hm</think>{SENTENCE}",
    "thinking that starts after the answer": f"{SAID}<think>was that right",
    "fence": f"```json\n{SAID}\n```",
    "fence without a language": f"```\n{SAID}\n```",
    "tildes": f"~~~\n{SAID}\n~~~",
    "plain in a fence": f"```\n{SENTENCE}\n```",
    "fence in prose": f"Here is the answer:\n```json\n{SAID}\n```\nHope it helps!",
    "two fences, the same": f"```json\n{SAID}\n```\nor\n```json\n{SAID}\n```",
    "tags of a tool call": f'<tool_call>\n{{"name": "f", "arguments": {SAID}}}\n</tool_call>',
    "call without tags": f'{{"name": "f", "parameters": {SAID}}}',
    "arguments as text": json.dumps({"name": "f", "arguments": SAID}),
    "text in text": json.dumps({"sentence": SAID}),
    "list of one": f"[{SAID}]",
    "list of one text": json.dumps([SENTENCE]),
    "a list under the key": json.dumps({"sentence": [SENTENCE]}),
    "extra keys": json.dumps({"sentence": SENTENCE, "explanation": "because", "score": 7}),
    "another case": json.dumps({"Sentence": SENTENCE}),
    "properties": json.dumps({"properties": {"sentence": SENTENCE}}),
    "trailing comma": f'{{"sentence": "{SENTENCE}",}}',
}


def called(arguments: dict[str, object]) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "functionality", "args": arguments, "id": "1"}])


def read(text: str, **fields: Any) -> str:
    return read_sentence(Reply([text], **fields), max_tokens=200)


@pytest.mark.parametrize("form", WRAPPED)
def test_the_sentence_is_taken_out_of_what_surrounds_it(form: str) -> None:
    text = WRAPPED[form]
    expected = " ".join(SENTENCE.split())
    assert read(text) == expected
    call = {"name": "f", "args": text, "id": "1", "error": None, "type": "invalid_tool_call"}
    as_call = AIMessage("", invalid_tool_calls=[call])
    assert read_sentence(reply_from_message(as_call), 200) == expected


def test_a_sentence_is_read_from_a_call_or_from_content() -> None:
    for message in (called({"sentence": f"  {SENTENCE}\n"}), AIMessage(SAID), AIMessage(SENTENCE)):
        assert read_sentence(reply_from_message(message), 200) == SENTENCE


UNUSABLE = {
    "": "empty",
    "  \n": "empty",
    '{"sentence": "A cat': "no JSON",
    '{"text": "A cat hunts."}': "no JSON",
    '{"sentence": 7}': "no JSON",
    '{"sentence": " "}': "no JSON",
    '{"sentence": {"type": "string", "description": "One sentence."}}': "no JSON",
    "<html><body>Login</body></html>": "no JSON",
    "A cat hunts.\nIt sleeps all day.": "2 lines",
    "A cat hunts. It sleeps all day.": "2 sentences",
    '[{"sentence": "A cat hunts."}, {"sentence": "A cat sleeps."}]': "2 sentences",
    "I'm sorry, but I can't help with that.": "refusal.*can't help",
    "cat " * 25_000: "characters",
    json.dumps({"sentence": "cat " * 25_000}): "characters",
    json.dumps({"sentence": "cat " * 200}): "799 characters",
    "<think>a cat, so what can be said": "did not finish thinking.*max_tokens = 200",
    "[" * 5000: "no JSON",
    '{"a":' * 3000: "no JSON",
}


@pytest.mark.parametrize("text", UNUSABLE, ids=lambda text: text[:20])
def test_what_holds_no_sentence_is_unusable_with_the_reason(text: str) -> None:
    with pytest.raises(Unusable, match=UNUSABLE[text]) as raised:
        read(text)
    assert raised.value.raw == text[: len(raised.value.raw)]
    assert raised.value.raw or not text.strip()


@pytest.mark.parametrize("arguments", [{}, {"sentence": " "}, {"sentence": 7}, {"sentence": "cat " * 200}])
def test_a_call_without_a_sentence_is_unusable(arguments: dict[str, object]) -> None:
    with pytest.raises(Unusable):
        read_sentence(reply_from_message(called(arguments)), 200)


@pytest.mark.parametrize("key", ["finish_reason", "stop_reason", "done_reason", "stopReason"])
@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("length", "cut off at describe.llm.max_tokens = 200"),
        ("max_tokens", "cut off"),
        ("MAX_TOKENS", "cut off"),
        ("content_filter", "content filter"),
        ("SAFETY", "content filter"),
        ("refusal", "refused"),
    ],
)
def test_the_reason_why_a_model_stopped_is_read(key: str, stop: str, reason: str) -> None:
    message = AIMessage(SAID, response_metadata={key: stop})
    with pytest.raises(Unusable, match=reason):
        read_sentence(reply_from_message(message), 200)


def test_tokens_that_went_into_thinking_are_told_from_a_long_answer() -> None:
    with pytest.raises(Unusable, match="thinks first"):
        read("", stop="length")
    with pytest.raises(Unusable, match=r"max_tokens = 200: raise"):
        read(SAID[:20], stop="length")


def test_a_refusal_is_quoted() -> None:
    message = AIMessage("", additional_kwargs={"refusal": "I cannot help with that."})
    with pytest.raises(Unusable, match="refused: 'I cannot help with that"):
        read_sentence(reply_from_message(message), 200)


def body(message: Any = None, **fields: Any) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"choices": [choice], **fields}).encode()


@pytest.mark.parametrize(
    "arguments", [{"sentence": SENTENCE}, SAID, [{"sentence": SENTENCE}]], ids=["object", "text", "list"]
)
def test_a_body_that_langchain_cannot_read_is_read_by_itself(arguments: object) -> None:
    message = {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    reply = reply_from_body(body(message, usage={"prompt_tokens": 7, "completion_tokens": 3}))
    assert read_sentence(reply, 200) == SENTENCE
    assert reply.usage == Usage(7, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "chat completion"),
        (b"<html>", "chat completion"),
        (b"null", "chat completion"),
        (b"[]", "chat completion"),
        (b"[" * 100_000, "chat completion"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": null}', "no choices"),
        (b'{"choices": [7]}', "no choices"),
        (body(None), "no message"),
        (b'{"error": {"message": "out of memory"}}', "error: out of memory"),
        (b'{"error": "out of memory"}', "error: out of memory"),
    ],
    ids=str,
)
def test_what_is_no_chat_completion_is_said_in_plain_words(content: bytes, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        reply_from_body(content)


@pytest.mark.parametrize("tokens", [10**30, 2**63, -5, "many", 1.5, True, None, [1]], ids=str)
def test_token_counts_that_cannot_be_true_are_unknown(tokens: object) -> None:
    message = {"content": SAID}
    reply = reply_from_body(body(message, usage={"prompt_tokens": 7, "completion_tokens": tokens}))
    assert read_sentence(reply, 200) == SENTENCE
    assert (reply.usage, reply.odd_usage) == (None, True)


def test_a_server_that_counts_no_tokens_is_not_odd() -> None:
    for reply in (reply_from_body(body({"content": SAID})), reply_from_message(AIMessage(SAID))):
        assert (reply.usage, reply.odd_usage) == (None, False)


@given(st.text(max_size=300) | st.text(alphabet='{}[]",:<>/think sentence`~', max_size=300))
def test_any_text_is_a_sentence_or_unusable(text: str) -> None:
    with suppress(Unusable):
        assert read(text)
