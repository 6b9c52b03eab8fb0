"""A finished knowledge base completed by a chat model: a real HTTP server is asked for what the file lacks alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.describe import make_inputs
from benchmarks.llm_stub import Payload, Reply, Stub, answer, running, sentence_for, usual

from mdpr.artifacts import (
    ClassKnowledge,
    Knowledge,
    parse_knowledge,
    read_classes,
    read_json,
    read_knowledge,
    write_json,
)
from mdpr.errors import AnswersMissing, CheckFailed, KnowledgeError, MdprError
from mdpr.knowledge.bases import merge
from mdpr.params import DIMENSIONS, Params, parse_params
from mdpr.stages.stage import load_stage, run_otherwise, run_stage

pytestmark = pytest.mark.integration
NAMES = ["heron", "crane", "sea gull", "tern"]  # the inputs' rival of each is the next, of the last the first
CONTRAST = DIMENSIONS[-1]
Describe = Callable[..., Knowledge]


def finished(**changes: Any) -> Knowledge:
    """Complete; the contrast of two classes is with the rival, a third has one that waits for it, the tern has none."""
    rivals = ["crane", "heron", "tern", "sea gull"]
    classes = [
        ClassKnowledge(
            index=index,
            name=name,
            rival=rivals[index],
            sentences={
                **{key: f"The {key} of a {name} is written by hand in number {index}." for key in DIMENSIONS[:-1]},
                CONTRAST: f"Unlike a {rivals[index]}, a {name} is told apart by hand in number {index}.",
            },
        )
        for index, name in enumerate(NAMES)
    ]
    waiting = {"sea gull": "Unlike a sea gull, a crane has long legs and a straight neck."}
    classes[1] = classes[1].model_copy(update={"differential_alternatives": waiting})
    classes[0] = classes[0].model_copy(update=changes)
    return Knowledge(provenance={"author": "somebody"}, classes=tuple(classes))


@pytest.fixture
def sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    make_inputs(tmp_path, NAMES)

    def make(stub: Stub, base: Knowledge, **settings: Any) -> Any:
        write_json(tmp_path / "finished.json", base)
        llm = {"model": "stub", "base_url": stub.url, "store": str(tmp_path / "answers.sqlite"), "max_retries": 0}
        path = str(tmp_path / "finished.json")
        return parse_params({"describe": {"provider": "completed", "path": path, "llm": llm, **settings}})

    return make


@pytest.fixture
def describe(tmp_path: Path, sections: Callable[..., Params]) -> Describe:
    def run(stub: Stub, base: Knowledge, **settings: Any) -> Knowledge:
        paths = {port: tmp_path / port for port in ("prepared", "probe", "knowledge")}
        run_stage(load_stage("describe"), paths, sections(stub, base, **settings))
        written = paths["knowledge"] / "knowledge.json"
        return parse_knowledge(written) if "shard" in settings else read_knowledge(written, NAMES)

    return run


def questions(stub: Stub) -> list[str]:
    return [payload["messages"][1]["content"] for payload in stub.payloads]


def test_only_the_contrast_with_another_rival_is_asked_for(describe: Describe) -> None:
    with running(usual(0.0)) as stub:
        done = describe(stub, finished())
        (asked,) = questions(stub)
    assert "A photo of a tern is easily mistaken for a heron" in asked
    assert [item.completed for item in done.classes] == [(), (), (), (CONTRAST,)]
    assert [(item.rival, item.rival_index) for item in done.classes] == [
        ("crane", 1), ("sea gull", 2), ("tern", 3), ("heron", 0),
    ]  # fmt: skip
    given = finished()
    for item, before in zip(done.classes, given.classes, strict=True):
        assert {key: item.sentences[key] for key in DIMENSIONS[:-1]} == {
            key: before.sentences[key] for key in DIMENSIONS[:-1]
        }
    assert done.classes[1].sentences[CONTRAST] == given.classes[1].differential_alternatives["sea gull"]
    assert done.classes[3].sentences[CONTRAST] == sentence_for(stub.payloads[0])
    assert done.provenance["provider"] == "completed"
    assert done.provenance["base"] == {"author": "somebody"}


def test_gaps_are_asked_for_and_a_second_run_asks_nothing(describe: Describe) -> None:
    sentences = finished().classes[0].sentences | {"functionality": "  "}
    del sentences["contextual_information"]
    with running(usual(0.0)) as stub:
        first = describe(stub, finished(sentences=sentences))
        assert stub.calls == 3
        assert first.classes[0].completed == ("functionality", "contextual_information")
        assert describe(stub, finished(sentences=sentences)) == first
        assert stub.calls == 3


def test_a_complete_file_needs_neither_server_nor_key(describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    base = finished()
    tern = base.classes[3].model_copy(update={"rival": "heron"})
    with running(usual(0.0)) as stub:
        monkeypatch.delenv("OPENAI_API_KEY")
        done = describe(stub, base.model_copy(update={"classes": (*base.classes[:3], tern)}))
        assert stub.calls == 0
    assert all(item.completed == () for item in done.classes)


def test_repair_replaces_what_the_audit_refuses_in_the_file(describe: Describe) -> None:
    sentences = finished().classes[0].sentences | {"functionality": "As an AI I cannot say what a heron is for."}
    with running(usual(0.0)) as stub:
        with pytest.raises(CheckFailed, match=r"class 0 \(heron\), functionality.*--repair"):
            describe(stub, finished(sentences=sentences))
        done = describe(stub, finished(sentences=sentences), repair=True)
        assert stub.calls == 2
        assert "As an AI I cannot say what a heron is for." in questions(stub)[1]
    assert done.classes[0].completed == ("functionality",)
    assert done.classes[0].sentences["functionality"] == sentence_for(stub.payloads[1])


def test_what_stays_open_is_a_gap_and_no_contrast_with_another_class_takes_its_place(
    describe: Describe, tmp_path: Path
) -> None:
    def unusable(_: int, payload: Payload) -> Reply:
        return answer(payload, json.dumps({"text": "no"}))

    with running(unusable) as stub, pytest.raises(AnswersMissing, match=r"class 3 \(tern\), differential_features"):
        describe(stub, finished())
    findings = read_json(tmp_path / "knowledge.failed" / "audit.json")["findings"]
    assert [item["class_index"] for item in findings if item["check"] == "missing"] == [3]


def test_shards_complete_their_own_classes_and_merge_to_the_whole(describe: Describe, tmp_path: Path) -> None:
    with running(usual(0.0)) as stub:
        whole = describe(stub, finished())
        (tmp_path / "answers.sqlite").unlink()
        first = describe(stub, finished(), shard="1/2")
        assert [item.name for item in first.classes] == ["heron", "crane"]
        assert stub.calls == 1
        second = describe(stub, finished(), shard="2/2")
        assert stub.calls == 2
    assert merge({"first": first, "second": second}, read_classes(tmp_path / "prepared")) == whole


def test_a_dry_run_counts_what_the_file_lacks(
    sections: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(usual(0.0)) as stub:
        paths = {port: tmp_path / port for port in ("prepared", "probe")}
        run_otherwise(load_stage("describe"), "dry_run", paths, sections(stub, finished()))
        assert stub.calls == 0
    told = capsys.readouterr().out
    assert "calls: 1, of which 0 are answered" in told
    assert "cost: unknown; set describe.llm.input_usd_per_million" in told


def test_a_file_of_other_classes_is_refused_before_anything_is_asked(describe: Describe) -> None:
    with running(usual(0.0)) as stub:
        with pytest.raises(KnowledgeError, match="class 0 is 'egret'"):
            describe(stub, finished(name="egret"))
        assert stub.calls == 0


def test_a_missing_file_is_named_with_the_ways_to_get_one(describe: Describe) -> None:
    with running(usual(0.0)) as stub, pytest.raises(MdprError, match=r"none\.json"):
        describe(stub, finished(), path="none.json")
    assert stub.calls == 0
