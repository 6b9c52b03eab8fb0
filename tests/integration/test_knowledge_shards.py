"""A knowledge base asked for in shards and merged on the command line, against a real HTTP server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from benchmarks.describe import make_inputs
from benchmarks.llm_stub import Payload, Reply, answer, running, sentence_for, usual

from mdpr.artifacts import read_knowledge
from mdpr.cli import main
from mdpr.errors import KnowledgeError

pytestmark = pytest.mark.integration
CLASSES = 7
Mdpr = Callable[..., int]


@pytest.fixture
def mdpr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mdpr:
    """mdpr("describe", ...) -> its exit code, in a folder with prepared/ and probe/ of seven classes."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.chdir(tmp_path)
    make_inputs(tmp_path, [f"thing {index}" for index in range(CLASSES)])

    def call(*arguments: str) -> int:
        ports = ("--prepared", "prepared", "--probe", "probe")
        monkeypatch.setattr(sys, "argv", ["mdpr", *arguments, *ports])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return call


def settings(url: str, **describe: object) -> None:
    llm = {"model": "stub", "base_url": url, "max_retries": 1, "timeout_s": 5}
    Path("params.yaml").write_text(yaml.safe_dump({"describe": {"provider": "llm", "llm": llm, **describe}}), "utf-8")


def described(mdpr: Mdpr, name: str, *options: str) -> Path:
    """`mdpr describe` with answers of its own, as a pod has them."""
    store = ("--set", f"describe.llm.store={name}.sqlite")
    assert mdpr("describe", "--knowledge", name, *store, *options) == 0
    return Path(name)


@pytest.mark.parametrize("count", [2, CLASSES])
def test_shards_ask_every_question_once_and_merge_to_the_same_bytes(mdpr: Mdpr, count: int) -> None:
    with running(usual(0.0)) as stub:
        settings(stub.url)
        whole = described(mdpr, "whole")
        assert stub.calls == 5 * CLASSES
        shards = [described(mdpr, f"part{n}", "--shard", f"{n}/{count}") for n in range(1, count + 1)]
        assert stub.calls == 2 * 5 * CLASSES
    assert mdpr("knowledge", "merge", *map(str, reversed(shards)), "--knowledge", "merged") == 0
    for name in ("knowledge.json", "audit.json", "index.html"):
        assert (Path("merged") / name).read_bytes() == (whole / name).read_bytes()


def test_a_shard_repairs_its_own_classes(mdpr: Mdpr) -> None:
    """Class 5 lies in the second shard, where its place is not its index."""

    def behave(_: int, payload: Payload) -> Reply:
        question = payload["messages"][1]["content"]
        first = "What is a thing 5 for" in question and "language model" not in question
        text = "As a language model I would say that it is used for the work." if first else sentence_for(payload)
        return answer(payload, json.dumps({"sentence": text}))

    with running(behave) as stub:
        settings(stub.url, repair=True)
        part = described(mdpr, "part", "--shard", "2/2")
        assert stub.calls == 5 * 4 + 1
    content = json.loads((part / "knowledge.json").read_text("utf-8"))
    assert [item["index"] for item in content["classes"]] == [3, 4, 5, 6]
    assert "language model" not in json.dumps(content)


def test_shards_that_do_not_fit_are_one_line_and_write_nothing(mdpr: Mdpr, capsys: pytest.CaptureFixture[str]) -> None:
    with running(usual(0.0)) as stub:
        settings(stub.url)
        first, second = (described(mdpr, f"part{n}", "--shard", f"{n}/2") for n in (1, 2))
        other = described(mdpr, "other", "--shard", "2/2", "--set", "describe.llm.temperature=1")
    capsys.readouterr()
    for shards, named in (
        ([first], "class 3 (thing 3) is in no shard"),
        ([first, second, first], "part1 is given 2 times"),
        ([first, second, Path("part1/../part2")], "is in part2 and in part1/../part2"),
        ([first, second, other], "other has temperature = 1.0, part1 has 0.2"),
        ([first, Path("no/such")], "no/such/knowledge.json is missing"),
    ):
        assert mdpr("knowledge", "merge", *map(str, shards), "--knowledge", "merged") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert named in line
        assert not Path("merged").exists()


def test_a_shard_is_no_knowledge_base_for_encode(mdpr: Mdpr) -> None:
    with running(usual(0.0)) as stub:
        settings(stub.url)
        part = described(mdpr, "part", "--shard", "1/2")
    with pytest.raises(KnowledgeError, match="describes 3 classes, the data has 7"):
        read_knowledge(part / "knowledge.json", [f"thing {index}" for index in range(CLASSES)])
