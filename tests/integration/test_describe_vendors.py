"""describe by the protocols of other vendors, through their own LangChain packages, against a real HTTP server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchmarks.describe import make_inputs
from benchmarks.llm_stub import Payload, Reply, answer, running, sentence_for

from mdpr.artifacts import Knowledge, read_json, read_knowledge
from mdpr.errors import KnowledgeError
from mdpr.params import DIMENSIONS, parse_params
from mdpr.stages.stage import load_stage, run_stage

pytestmark = pytest.mark.integration
KEY = "key-of-a-test-6f1c0ffee5ecret"
THINGS = ("lamp", "kettle")


@dataclass(frozen=True)
class Protocol:
    """How a vendor's server is asked and answers."""

    package: str
    key_env: str
    question: Callable[[Payload], str]
    reply: Callable[[Payload, str], dict[str, Any]]


def anthropic_reply(payload: Payload, sentence: str) -> dict[str, Any]:
    call = {"type": "tool_use", "id": "call", "name": payload["tool_choice"]["name"], "input": {"sentence": sentence}}
    return {
        "id": "stub",
        "type": "message",
        "role": "assistant",
        "model": payload["model"],
        "content": [call],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 20},
    }


def google_reply(payload: Payload, sentence: str) -> dict[str, Any]:
    name = payload["tools"][0]["functionDeclarations"][0]["name"]
    part = {"functionCall": {"name": name, "args": {"sentence": sentence}}}
    return {
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120},
        "modelVersion": "stub",
    }


PROTOCOLS = {
    "anthropic": Protocol(
        package="langchain_anthropic",
        key_env="ANTHROPIC_API_KEY",
        question=lambda payload: str(payload["messages"][-1]["content"]),
        reply=anthropic_reply,
    ),
    "google_genai": Protocol(
        package="langchain_google_genai",
        key_env="GOOGLE_API_KEY",
        question=lambda payload: str(payload["contents"][-1]["parts"][0]["text"]),
        reply=google_reply,
    ),
}


@pytest.fixture(params=PROTOCOLS)
def vendor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    pytest.importorskip(PROTOCOLS[name].package, reason=f"pip install 'mdpr[{name.partition('_')[0]}]'")
    monkeypatch.setenv(PROTOCOLS[name].key_env, KEY)
    return name


def describe(folder: Path, vendor: str, url: str) -> Knowledge:
    make_inputs(folder, THINGS)
    llm = {
        "vendor": vendor,
        "model": "stub",
        "base_url": url.removesuffix("/v1"),
        "store": str(folder / "answers.sqlite"),
        "max_retries": 1,
        "timeout_s": 5,
    }
    params = parse_params({"describe": {"provider": "llm", "strict": False, "llm": llm}})
    run_stage(load_stage("describe"), {name: folder / name for name in ("prepared", "probe", "knowledge")}, params)
    return read_knowledge(folder / "knowledge" / "knowledge.json", THINGS)


def test_every_sentence_comes_from_the_vendors_protocol(vendor: str, tmp_path: Path) -> None:
    protocol = PROTOCOLS[vendor]

    def behave(_: int, payload: Payload) -> Reply:
        sentence = f"An answer to: {protocol.question(payload)}"
        return Reply(json.dumps(protocol.reply(payload, sentence)).encode())

    with running(behave) as stub:
        knowledge = describe(tmp_path, vendor, stub.url)
    assert stub.calls == len(THINGS) * len(DIMENSIONS)
    for name, item in zip(THINGS, knowledge.classes, strict=True):
        assert set(item.sentences) == set(DIMENSIONS)
        assert all(name in sentence for sentence in item.sentences.values())
    assert knowledge.provenance["vendor"] == vendor
    assert all(head.count(KEY) == 1 for head in stub.headers)
    holds_key = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holds_key == []


def test_a_busy_server_is_asked_again(vendor: str, tmp_path: Path) -> None:
    protocol = PROTOCOLS[vendor]

    def behave(call: int, payload: Payload) -> Reply:
        if call == 0:
            error = {"type": "error", "error": {"type": "rate_limit_error", "message": "busy", "code": 429}}
            return Reply(json.dumps(error).encode(), 429, {"Content-Type": "application/json", "Retry-After": "0"})
        return Reply(json.dumps(protocol.reply(payload, "A sentence on what was asked.")).encode())

    with running(behave) as stub:
        describe(tmp_path, vendor, stub.url)
    assert stub.calls == len(THINGS) * len(DIMENSIONS) + 1
    audit = read_json(tmp_path / "knowledge" / "audit.json")
    assert [finding for finding in audit["findings"] if finding["check"] == "missing"] == []


def test_a_refused_key_is_one_line_without_the_key(vendor: str, tmp_path: Path) -> None:
    error = {"type": "error", "error": {"type": "authentication_error", "message": f"bad key {KEY}", "code": 401}}

    with (
        running(lambda call, payload: Reply(json.dumps(error).encode(), 401)) as stub,
        pytest.raises(KnowledgeError, match="refuses model 'stub'") as caught,
    ):
        describe(tmp_path, vendor, stub.url)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["function_calling", "json_schema"])
def test_a_vendor_that_this_project_does_not_know_finds_its_own_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-06-01")

    def behave(_: int, payload: Payload) -> Reply:
        return answer(payload, json.dumps({"sentence": sentence_for(payload)}))

    with running(behave) as stub:
        make_inputs(tmp_path, THINGS)
        store = str(tmp_path / "answers.sqlite")
        llm = {"vendor": "azure_openai", "model": "stub", "base_url": stub.url.removesuffix("/v1"), "store": store}
        settings = {"provider": "llm", "strict": False, "llm": llm | {"structured_output": form}}
        ports = {name: tmp_path / name for name in ("prepared", "probe", "knowledge")}
        run_stage(load_stage("describe"), ports, parse_params({"describe": settings}))
    assert all(KEY in head and "/openai/deployments/stub/" in head for head in stub.headers)
    assert len(read_knowledge(tmp_path / "knowledge" / "knowledge.json", THINGS).classes) == len(THINGS)
