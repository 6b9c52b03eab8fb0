"""Replies of chat models that hold the sentence, and what such models wrap around it, for the stub server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.describe import make_inputs
from benchmarks.llm_stub import Behaviour, Payload, calling, completion, running, sentence_for
from mdpr.artifacts import read_knowledge
from mdpr.params import parse_params
from mdpr.stages.stage import load_stage, run_stage

CLASSES = 10


def said(payload: Payload) -> str:
    return json.dumps({"sentence": sentence_for(payload)})


def content(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def tool(payload: Payload) -> str:
    return str(payload["tools"][0]["function"]["name"]) if "tools" in payload else "answer"


WRAPPERS: dict[str, Callable[[Payload], dict[str, Any]]] = {
    "thinking": lambda payload: content(f"<think>\nOne sentence about {{it}}.\n</think>\n\n{said(payload)}"),
    "thinking, opened in the prompt": lambda payload: content(f"One sentence.\n</think>\n{said(payload)}"),
    "thinking in the arguments": lambda payload: (
        calling(payload, f"<think>hm</think><tool_call>{said(payload)}</tool_call>")
        if "tools" in payload
        else content(f"<think>hm</think><tool_call>{said(payload)}</tool_call>")
    ),
    "fence": lambda payload: content(f"```json\n{said(payload)}\n```"),
    "tildes": lambda payload: content(f"~~~\n{said(payload)}\n~~~"),
    "prose around a fence": lambda payload: content(f"Here it is:\n```json\n{said(payload)}\n```\nHope it helps!"),
    "call in tags": lambda payload: content(
        f'<tool_call>\n{{"name": "{tool(payload)}", "arguments": {said(payload)}}}\n</tool_call>'
    ),
    "call as text": lambda payload: content(f'{{"name": "{tool(payload)}", "parameters": {said(payload)}}}'),
    "list of one": lambda payload: content(f"[{said(payload)}]"),
    "extra keys": lambda payload: content(json.dumps({"sentence": sentence_for(payload), "explanation": "because"})),
    "another case": lambda payload: content(json.dumps({"Sentence": sentence_for(payload)})),
    "plain": lambda payload: content(sentence_for(payload)),
    "arguments as an object": lambda payload: (
        calling(payload, {"sentence": sentence_for(payload)}) if "tools" in payload else content(said(payload))
    ),
}


def wrappers_read(folder: Path) -> dict[str, bool]:
    """Wrapper -> whether `describe` reads all 50 sentences of ten classes out of it, over a real HTTP server."""
    os.environ.setdefault("OPENAI_API_KEY", "not needed")
    read = {}
    for number, (name, wrap) in enumerate(WRAPPERS.items()):
        place = folder / str(number)
        place.mkdir(parents=True)
        make_inputs(place, [f"thing {index}" for index in range(CLASSES)])
        with running(_replying(wrap)) as stub:
            llm = {"model": "stub", "base_url": stub.url, "store": str(place / "answers.sqlite"), "max_retries": 1}
            params = parse_params({"describe": {"provider": "llm", "strict": False, "llm": llm}})
            ports = {port: place / port for port in ("prepared", "probe", "knowledge")}
            run_stage(load_stage("describe"), ports, params)
            asked = {sentence_for(payload) for payload in stub.payloads}
        found = {
            sentence for row in read_knowledge(ports["knowledge"] / "knowledge.json").sentences_CV() for sentence in row
        }
        read[name] = found == asked and len(found) == 5 * CLASSES
    return read


def _replying(wrap: Callable[[Payload], dict[str, Any]]) -> Behaviour:
    return lambda _, payload: completion(payload, wrap(payload))
