"""describe against a real HTTP server that speaks like OpenAI's and behaves badly: nothing lost, nothing filled in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.describe import make_inputs
from benchmarks.llm_faults import HOSTILE_SENTENCES, REFUSED, UNUSABLE, saying
from benchmarks.llm_stub import Behaviour, Payload, Reply, Stub, answer, failure, running, sentence_for, usual

from mdpr import project
from mdpr.artifacts import read_json, read_knowledge
from mdpr.errors import AnswersMissing, CheckFailed, KnowledgeError
from mdpr.mlops.runs import flatten
from mdpr.params import DIMENSIONS, Params, parse_params
from mdpr.recipes import params_text, read_recipe
from mdpr.stages.stage import load_stage, run_otherwise, run_stage

pytestmark = pytest.mark.integration
KEY = "sk-test-6f1c0ffee5ecret"
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the stage against a stub, on three classes unless told otherwise; the knowledge folder comes back."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def describe(stub: Stub, llm: Mapping[str, Any] | None = None, classes: int = 3, **settings: Any) -> Path:
        if not (tmp_path / "prepared").exists():
            make_inputs(tmp_path, things(classes))
        paths = {port: tmp_path / port for port in ("prepared", "probe", "knowledge")}
        run_stage(load_stage("describe"), paths, sections(tmp_path, stub.url, llm, **settings))
        return paths["knowledge"]

    return describe


def sections(folder: Path, url: str, llm: Mapping[str, Any] | None = None, **settings: Any) -> Params:
    chosen = {
        "model": "stub",
        "base_url": url,
        "store": str(folder / "answers.sqlite"),
        "max_retries": 1,
        "timeout_s": 1,
    }
    return parse_params({"describe": {"provider": "llm", "llm": {**chosen, **(llm or {})}, **settings}})


def things(count: int) -> list[str]:
    return [f"thing {index}" for index in range(count)]


def written(payload: Payload) -> Reply:
    return answer(payload, json.dumps({"sentence": sentence_for(payload)}))


def about(payload: Payload, name: str) -> bool:
    """Whether this is the question on the class's function."""
    return f"What is a {name} for" in payload["messages"][1]["content"]


def only_for(name: str, bad: Callable[[Payload], Reply]) -> Behaviour:
    return one_each([(name, bad)])


def one_each(attacks: Iterable[tuple[str, Callable[[Payload], Reply]]]) -> Behaviour:
    """Questions on the function of the named classes are answered in these ways, all others as they should be."""
    table = dict(attacks)

    def behave(_: int, payload: Payload) -> Reply:
        return next((bad for name, bad in table.items() if about(payload, name)), written)(payload)

    return behave


@pytest.mark.parametrize("form", ["function_calling", "json_schema"])
def test_every_sentence_is_asked_for_once_and_a_second_run_asks_nothing(run: Run, form: str) -> None:
    with running(usual(0.0)) as stub:
        first = read_knowledge(run(stub, {"structured_output": form}) / "knowledge.json")
        assert stub.calls == 15
        assert first.provenance["provider"] == "llm"
        assert [item.rival_index for item in first.classes] == [1, 2, 0]
        assert len({sentence for row in first.sentences_CV() for sentence in row}) == 15
        assert read_knowledge(run(stub, {"structured_output": form}) / "knowledge.json") == first
        assert stub.calls == 15
        assert {payload["temperature"] for payload in stub.payloads} == {0.2}
        assert {payload["seed"] for payload in stub.payloads} == {0}
        schemas = json.dumps([payload.get("tools") or payload["response_format"] for payload in stub.payloads])
        assert all(schemas.count(f'"name": "{dimension}"') == 3 for dimension in DIMENSIONS)


def test_what_a_model_refuses_to_be_told_is_not_sent(run: Run) -> None:
    with running(usual(0.0)) as stub:
        run(stub, {"temperature": None, "seed": None})
        assert stub.calls == 15
        assert not [payload for payload in stub.payloads if payload.keys() & {"temperature", "seed"}]


def test_unusable_answers_leave_named_gaps_and_lose_nothing_else(run: Run, tmp_path: Path) -> None:
    """One attack a class, all in one run."""
    bad_answers = UNUSABLE | REFUSED
    attacks = [(f"thing {index}", bad) for index, (bad, _) in enumerate(bad_answers.values())]
    calls = 5 * len(bad_answers)
    with running(one_each(attacks)) as stub:
        with pytest.raises(AnswersMissing, match=r"class 0 \(thing 0\), functionality.*and 21 more") as raised:
            run(stub, classes=len(bad_answers))
        assert raised.value.exit_code == 3
        assert stub.calls == calls  # asking again would change nothing
        assert not (tmp_path / "knowledge").exists()
        assert {path.name for path in (tmp_path / "knowledge.failed").glob("[!.]*")} == {
            "audit.json",
            "index.html",
            "knowledge.json",
        }
        page = (tmp_path / "knowledge.failed" / "index.html").read_text("utf-8")
        assert page.count("error: no sentence: ") == len(bad_answers)
        findings = read_json(tmp_path / "knowledge.failed" / "audit.json")["findings"]
        gaps = [item for item in findings if item["check"] == "missing"]
        assert [(gap["level"], gap["class_index"], gap["dimension"]) for gap in gaps] == [
            ("error", index, "functionality") for index in range(len(bad_answers))
        ]
        for gap, (_, reason) in zip(gaps, bad_answers.values(), strict=True):
            assert reason in gap["message"]
        stub.behaviour = usual(0.0)
        assert len(read_knowledge(run(stub) / "knowledge.json").classes) == len(bad_answers)
        assert stub.calls == calls + len(bad_answers)


TRANSIENT: dict[str, Callable[[Payload], Reply]] = {
    "429 with Retry-After": lambda payload: failure(429, "slow down", {"Retry-After": "1"}),
    "429 without": lambda payload: failure(429, "slow down"),
    "500": lambda payload: failure(500, "oops"),
    "time-out": lambda payload: answer(payload, "{}", delay_s=30),
}


def test_passing_failures_are_repeated_and_nothing_is_missing(run: Run) -> None:
    """One kind a class, all in one run; each fails once."""
    seen: dict[str, list[float]] = {name: [] for name in TRANSIENT}

    def once(name: str) -> Callable[[Payload], Reply]:
        def behave(payload: Payload) -> Reply:
            seen[name].append(time.monotonic())
            return TRANSIENT[name](payload) if len(seen[name]) == 1 else written(payload)

        return behave

    with running(one_each((f"thing {index}", once(name)) for index, name in enumerate(TRANSIENT))) as stub:
        read_knowledge(run(stub, classes=len(TRANSIENT)) / "knowledge.json")
    assert {name: len(times) for name, times in seen.items()} == dict.fromkeys(TRANSIENT, 2)
    first, second = seen["429 with Retry-After"]
    assert second - first >= 1


def test_a_failure_that_stays_is_given_up_after_the_retries(run: Run) -> None:
    with running(only_for("thing 1", lambda payload: failure(503, "away"))) as stub:
        with pytest.raises(AnswersMissing, match="away"):
            run(stub)
        assert stub.calls == 16


def test_a_server_that_is_away_is_not_asked_five_thousand_times(run: Run) -> None:
    with running(lambda _, payload: failure(400, "no")) as stub:
        with pytest.raises(AnswersMissing, match="and 14 more"):
            run(stub, {"concurrency": 1})
        assert stub.calls == 11


def test_hostile_answers_are_refused_and_repair_asks_for_them_alone(run: Run, tmp_path: Path) -> None:
    count = len(HOSTILE_SENTENCES)
    with running(one_each((f"thing {i}", saying(text)) for i, text in enumerate(HOSTILE_SENTENCES.values()))) as stub:
        with pytest.raises(CheckFailed, match="--repair") as raised:
            run(stub, classes=count)
        assert raised.value.exit_code == 2
        findings = read_json(tmp_path / "knowledge.failed" / "audit.json")["findings"]
        assert [item["check"] for item in findings if item["level"] == "error"] == list(HOSTILE_SENTENCES)
        stub.behaviour = usual(0.0)
        repaired = read_knowledge(run(stub, repair=True) / "knowledge.json")
        assert stub.calls == 6 * count
        asked = {payload["messages"][1]["content"]: sentence_for(payload) for payload in stub.payloads[5 * count :]}
        for index, text in enumerate(HOSTILE_SENTENCES.values()):
            (better,) = (sentence for question, sentence in asked.items() if text in question)
            assert repaired.classes[index].sentences["functionality"] == better
        assert all("The reason: " in question for question in asked)
        run(stub, repair=True)
        assert stub.calls == 6 * count


def test_without_strict_the_errors_of_the_audit_are_only_reported(run: Run) -> None:
    with running(only_for("thing 1", saying("Too short."))) as stub:
        knowledge = run(stub, strict=False)
        assert read_knowledge(knowledge / "knowledge.json").classes[1].sentences["functionality"] == "Too short."
        assert "too_short" in {item["check"] for item in read_json(knowledge / "audit.json")["findings"]}


def test_a_refused_key_ends_the_run_in_one_line_without_the_key(run: Run) -> None:
    with running(lambda _, payload: failure(401, f"Incorrect API key provided: {KEY}")) as stub:
        with pytest.raises(KnowledgeError, match=r"refuses model 'stub'.*\*\*\*") as raised:
            run(stub, {"concurrency": 1})
        assert KEY not in str(raised.value)
        assert stub.calls == 1


def test_the_budget_stops_the_run_before_it_is_exceeded(run: Run) -> None:
    prices = {"input_usd_per_million": 1000.0, "output_usd_per_million": 1000.0, "concurrency": 4}
    with running(usual(0.05)) as stub:
        with pytest.raises(AnswersMissing, match="budget is used up"):
            run(stub, prices, budget_usd=1.5)
        assert 0 < stub.calls < 15
        assert stub.calls * 120 * 1000 / 1e6 <= 1.5  # the stub's answers take 120 tokens each
        before = stub.calls
        read_knowledge(run(stub, prices) / "knowledge.json")
        assert stub.calls == 15
        assert before < 15


def test_requests_a_minute_are_kept(run: Run) -> None:
    with running(usual(0.0)) as stub:
        times: list[float] = []

        def timed(number: int, payload: Payload) -> Reply:
            times.append(time.monotonic())
            return written(payload)

        stub.behaviour = timed
        run(stub, {"requests_per_minute": 600, "concurrency": 15})
        assert times[-1] - times[0] >= 13 / 10


def test_dry_run_tells_calls_and_cost_and_asks_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_inputs(tmp_path, things(3))
    paths = {port: tmp_path / port for port in ("prepared", "probe")}
    prices = {"input_usd_per_million": 1.0, "output_usd_per_million": 1.0}
    with running(usual(0.0)) as stub:
        settings = sections(tmp_path, stub.url, prices)
        run_otherwise(load_stage("describe"), "dry_run", paths, settings)
        assert "calls: 15, of which 0 are answered" in capsys.readouterr().out
        assert not (tmp_path / "answers.sqlite").exists()
        assert stub.calls == 0
        run(stub)
        run_otherwise(load_stage("describe"), "dry_run", paths, settings)
        told = capsys.readouterr().out
        assert "calls: 15, of which 15 are answered" in told
        assert "cost, about: 0.00 USD" in told
        assert stub.calls == 15


def command(folder: Path, url: str, concurrency: int) -> list[str]:
    settings = sections(folder, url, {"concurrency": concurrency, "timeout_s": 30}, strict=False).describe
    (folder / "params.yaml").write_text(yaml.safe_dump({"describe": settings.model_dump(mode="json")}))
    ports = [text for port in ("prepared", "probe", "knowledge") for text in (f"--{port}", str(folder / port))]
    return [sys.executable, "-m", "mdpr", "describe", *ports, "--params", str(folder / "params.yaml")]


def test_killed_at_half_the_rerun_repeats_at_most_what_was_under_way(tmp_path: Path) -> None:
    make_inputs(tmp_path, things(20))
    with running(usual(0.1)) as stub:
        killed = subprocess.Popen(command(tmp_path, stub.url, 8), stderr=subprocess.DEVNULL)
        while stub.calls < 50:
            assert killed.poll() is None
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert not (tmp_path / "knowledge").exists()
        time.sleep(1)  # its workers see that it is gone, and end
        seen = stub.calls
        assert seen <= 50 + 2 * 8
        subprocess.run(command(tmp_path, stub.url, 8), check=True, stderr=subprocess.DEVNULL)
        assert stub.repeated <= 8 + 1
        assert stub.calls == 100 + stub.repeated
        assert len(read_knowledge(tmp_path / "knowledge" / "knowledge.json").classes) == 20


def test_the_key_is_sent_to_the_server_and_is_nowhere_else(tmp_path: Path, project_root: Path) -> None:
    """Files, logs, the flattened settings that MLflow is given, and the compiled pipelines."""
    make_inputs(tmp_path, things(2))
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    bad = only_for("thing 1", lambda payload: failure(400, f"you sent {KEY}"))
    with running(bad) as stub:
        ended = subprocess.run(
            [*command(tmp_path, stub.url, 2)[:3], "--verbose", *command(tmp_path, stub.url, 2)[3:]],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 3, ended.stderr
        assert any(KEY in head for head in stub.headers)
        stub.behaviour = usual(0.0)
        subprocess.run(command(tmp_path, stub.url, 2), env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert "you sent ***" in ended.stderr
    assert KEY not in ended.stdout + ended.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"answers.sqlite", "knowledge.json", "audit.json"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    settings = sections(tmp_path, "http://x", {"api_key_env": "MINE"})
    assert KEY not in json.dumps(flatten(vars(settings)), default=str)
    assert not [path for path in (project_root / "pipelines").glob("*.yaml") if KEY in path.read_text("utf-8")]


def test_dvc_needs_no_finished_knowledge_base_for_a_chat_model(tmp_path: Path) -> None:
    """In a project of its own, with DVC, from an environment that is not activated."""
    team = tmp_path / "team"
    project.create(team, project.Choices())
    (team / "data").mkdir()
    make_inputs(team / "data", things(3))
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "PATH": "/usr/bin:/bin"}

    def repro(code: int = 0, **settings: Any) -> str:
        params = yaml.safe_load(params_text(read_recipe("own-data"), None))
        params["describe"] |= settings
        (team / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        command = [sys.executable, "-m", "mdpr", "repro", "--single-item", "describe"]
        done = subprocess.run(command, cwd=team, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) is bool(code), done.stdout + done.stderr
        return done.stdout + done.stderr

    with running(usual(0.0)) as stub:
        llm = {"model": "stub", "base_url": stub.url}
        own = "knowledge/own-data.json"
        assert own in repro(code=1, provider="llm", llm=llm)
        assert stub.calls == 0
        repro(provider="llm", llm=llm, path="data/prepared")
        assert stub.calls == 15
        assert "didn't change" in repro(provider="llm", llm=llm, path="data/prepared")
    (team / "knowledge").mkdir()
    shutil.copy(team / "data/knowledge/knowledge.json", team / own)
    repro(provider="curated", path=own)
    assert "didn't change" in repro(provider="curated", path=own)
    written = json.loads((team / own).read_text())
    written["classes"][0]["sentences"][DIMENSIONS[0]] = "A thing 0 that is round and of a plain blue."
    (team / own).write_text(json.dumps(written))
    assert "Running stage 'describe'" in repro(provider="curated", path=own)
