"""From the reply of a chat model to the one sentence in it.

Models and servers wrap the JSON that holds the sentence: in thinking blocks, code fences, tool-call tags, lists, calls
of another form. All of these are read. A reply that is cut off, filtered, refused or no sentence is `Unusable`, with
the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdpr.knowledge.questions import Usage
from mdpr.knowledge.wording import MAX_CHARACTERS, chatter, several_sentences

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage

# Why a model stopped, in the words of OpenAI, Anthropic, Google, Mistral, Ollama and Bedrock.
STOP_KEYS = ("finish_reason", "stop_reason", "done_reason", "stopReason")
CUT_OFF = {"length", "max_tokens", "model_length", "max_output_tokens", "model_context_window_exceeded"}
FILTERED = {
    "content_filter", "content_filtered", "guardrail_intervened", "safety", "prohibited_content", "blocklist",
    "recitation", "spii", "model_armor",
}  # fmt: skip
MOST_TOKENS = 10**9  # a server that reports more per call is wrong
MAX_RAW_CHARACTERS = 2000  # of an unusable reply, as it is kept for people
MAX_SEARCHED_CHARACTERS = 20_000  # of a reply without its thinking; a longer one is refused
MAX_DEPTH = 8  # of JSON inside JSON

THINKING = r"(?:think|thinking|thought|reasoning|reflection|analysis)"
THOUGHT = re.compile(rf"</{THINKING}>", re.IGNORECASE)
STILL_THINKING = re.compile(rf"<{THINKING}>", re.IGNORECASE)
FENCE = re.compile(r"^\s*(?:```|~~~)[^\n]*\n(.*?)\n?\s*(?:```|~~~)\s*$", re.DOTALL)
OPENING = re.compile(r"[{\[]")
TRAILING_COMMA = re.compile(r",\s*([}\]])")
DECODER = json.JSONDecoder(strict=False)  # a line break inside a string is no fault here


class Unusable(Exception):
    """The model answered, but not with one sentence. `raw` is what it wrote, for people to read."""

    def __init__(self, reason: str, raw: str = "") -> None:
        super().__init__(reason)
        self.raw = raw[:MAX_RAW_CHARACTERS]


@dataclass(frozen=True)
class Reply:
    """A model's reply, whatever the vendor.

    `texts` holds the arguments of its tool calls, then its content. `usage` is None if the server reports none;
    `odd_usage`: it reports numbers that cannot be true.
    """

    texts: Sequence[str]
    stop: str = ""
    refusal: str = ""
    usage: Usage | None = None
    odd_usage: bool = False

    @property
    def raw(self) -> str:
        return "\n".join(text for text in self.texts if text) or self.refusal


def reply_from_message(message: AIMessage) -> Reply:
    """The reply in LangChain's message."""
    calls = [*message.tool_calls, *message.invalid_tool_calls]
    stop = next((message.response_metadata[key] for key in STOP_KEYS if message.response_metadata.get(key)), "")
    reported = message.usage_metadata
    usage = _usage(reported["input_tokens"], reported["output_tokens"]) if reported else None
    return Reply(
        texts=[*(_text(call["args"]) for call in calls), str(message.text)],
        stop=str(stop),
        refusal=_text(message.additional_kwargs.get("refusal")),
        usage=usage,
        odd_usage=bool(reported) and usage is None,
    )


def reply_from_body(body: bytes) -> Reply:
    """The reply in the body of an OpenAI chat completion that LangChain cannot read.

    Raises `Unusable` if it is none.
    """
    raw = body[: 4 * MAX_RAW_CHARACTERS].decode("utf-8", "replace")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Unusable("the server did not send a chat completion", raw)
    if content.get("error"):
        raise Unusable(f"the server reports an error: {_text(_field(content['error'], 'message') or content['error'])}")
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _field(choice, "message")
    if not isinstance(message, dict):
        part = "no message" if isinstance(choice, dict) else "no choices"
        raise Unusable(f"the server did not send a chat completion: it holds {part}", raw)
    calls = message.get("tool_calls")
    functions = [_field(call, "function") for call in calls] if isinstance(calls, list) else []
    reported = content.get("usage")
    usage = _usage(_field(reported, "prompt_tokens"), _field(reported, "completion_tokens"))
    return Reply(
        texts=[*(_text(_field(function, "arguments")) for function in functions), _text(message.get("content"))],
        stop=_text(_field(choice, "finish_reason")),
        refusal=_text(message.get("refusal")),
        usage=usage,
        odd_usage=bool(reported) and usage is None,
    )


def read_sentence(reply: Reply, max_tokens: int) -> str:
    """The one sentence in a reply. Raises `Unusable` if there is none."""
    stop = reply.stop.lower()
    if stop in CUT_OFF:
        where = "" if reply.raw.strip() else " before the sentence began (a model that thinks first needs more)"
        raise Unusable(f"cut off at describe.llm.max_tokens = {max_tokens}{where}: raise it", reply.raw)
    if stop in FILTERED:
        raise Unusable(f"the server's content filter stopped the answer ({reply.stop})", reply.raw)
    if reply.refusal or stop == "refusal":
        raise Unusable(f"the model refused: {_quote(reply.refusal or reply.raw)}", reply.raw)
    texts = [_without_thinking(text, max_tokens) for text in reply.texts]
    for text in texts:
        _check_length(text, MAX_SEARCHED_CHARACTERS, reply)
    found = {sentence for text in texts for sentence in _sentences_in(text)}
    if not found:
        return _plain_sentence([text for text in texts if text], reply)
    if len(found) > 1:
        raise Unusable(f"{len(found)} sentences, one was asked for", reply.raw)
    (sentence,) = found
    return _check_length(sentence, MAX_CHARACTERS, reply)


def _without_thinking(text: str, max_tokens: int) -> str:
    """`text` after its thinking blocks. A block may lack its opening tag, which some servers keep in the prompt."""
    *_, start = 0, *(tag.end() for tag in THOUGHT.finditer(text))
    answer = text[start:]
    if tag := STILL_THINKING.search(answer):
        answer = answer[: tag.start()]
        if not answer.strip():
            raise Unusable(f"the model did not finish thinking: raise describe.llm.max_tokens = {max_tokens}", text)
    return answer.strip()


def _sentences_in(value: object, depth: int = 0) -> Iterator[str]:
    """Every text under a key `sentence`, in JSON that may be wrapped in lists, objects or texts."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, str):
        for item in _json_in(value):
            if isinstance(item, list) and len(item) == 1 and isinstance(item[0], str):
                yield from _sentence(item[0], depth)
            yield from _sentences_in(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _sentences_in(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, list) and len(item) == 1:
                item = item[0]
            if key.strip().lower() == "sentence" and isinstance(item, str):
                yield from _sentence(item, depth)
            else:
                yield from _sentences_in(item, depth + 1)


def _sentence(text: str, depth: int) -> Iterator[str]:
    """`text`, or the sentences in the JSON that it is."""
    inner = list(_sentences_in(text, depth + 1))
    if inner or text.strip():
        yield from inner or [" ".join(text.split())]


def _json_in(text: str) -> list[Any]:
    """Every JSON object or list in `text`, in order; one with a trailing comma if there is no other."""
    for form in (text, TRAILING_COMMA.sub(r"\1", text)):
        found, place = [], 0
        while mark := OPENING.search(form, place):
            try:
                value, place = DECODER.raw_decode(form, mark.start())
                found.append(value)
            except (ValueError, RecursionError):
                place = mark.end()
        if found:
            return found
    return []


def _plain_sentence(texts: Sequence[str], reply: Reply) -> str:
    """A reply without JSON that is one sentence already."""
    text = texts[0] if texts else ""
    if fenced := FENCE.match(text):
        text = fenced.group(1)
    text = text.strip().strip("\"'“”")
    if not text:
        raise Unusable("the answer is empty", reply.raw)
    if re.search(r"[{}\[\]<>]", text):
        raise Unusable("the answer holds no JSON with a sentence", reply.raw)
    if len(text.splitlines()) > 1:
        raise Unusable(f"{len(text.splitlines())} lines of text, one sentence was asked for", reply.raw)
    if fault := chatter(text) or several_sentences(text):
        raise Unusable(f"{fault}: {_quote(text)}", reply.raw)
    return _check_length(text, MAX_CHARACTERS, reply)


def _check_length(text: str, most: int, reply: Reply) -> str:
    if len(text) > most:
        raise Unusable(f"{len(text):,} characters, a sentence has at most {MAX_CHARACTERS}", reply.raw)
    return text


def _usage(*tokens: Any) -> Usage | None:
    """Tokens in and out; None if they cannot be true."""
    return Usage(*tokens) if all(type(count) is int and 0 <= count <= MOST_TOKENS for count in tokens) else None


def _field(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _text(value: object) -> str:
    """A part of a reply as text: arguments may be an object, content a list of blocks."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 100 else f"{line[:100]} ...")
