"""What the components call: merging of parameters, one-line errors, what the UI is shown."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.llm_stub import failure, running

from mdpr.artifacts import write_json
from mdpr.errors import ConfigError
from mdpr.kubeflow import components
from mdpr.kubeflow.components import (
    OUTBOX,
    configure_stages,
    keep_state,
    merge_params,
    publish_workspace,
    run_check,
    run_component,
    show_confusion,
    show_metrics,
    state_folder,
    summarise,
)
from mdpr.kubeflow.tasks import require_none
from mdpr.params import SECTIONS, Params, load_params, parse_params
from mdpr.params.section import DIMENSIONS
from mdpr.stages.stage import CHECKPOINTS, STAGES


@dataclass
class Port:
    """An artifact as Kubeflow hands it over."""

    path: str
    metadata: dict[str, Any] = field(default_factory=dict)
    matrix: tuple[list[str], list[list[int]]] | None = None

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None:
        self.matrix = (categories, matrix)


def test_overrides_have_the_last_word_and_leave_their_neighbours() -> None:
    base = "tune: {epochs: 1, seed: 1, loss: {tau: 0.5, base: 2.0}}"
    texts = merge_params(base, {"tune": {"epochs": 2, "seed": 2}}, "tune: {epochs: 3, loss: {tau: 0.7}}")
    tune = yaml.safe_load(texts["tune"])["tune"]
    assert (tune["epochs"], tune["seed"], tune["loss"]["tau"], tune["loss"]["base"]) == (3, 2, 0.7, 2.0)


def test_whole_numbers_stay_whole() -> None:
    (text,) = (text for name, text in merge_params("", {"tune": {"epochs": 4}}, "").items() if name == "tune")
    assert "epochs: 4\n" in text


def test_there_is_one_text_a_stage_in_order_and_one_of_all(tmp_path: Path) -> None:
    texts = configure_stages(
        {"base": "", "recipe": "", "overrides": "tune: {epochs: 3}", "settings": Port(str(tmp_path / "settings"))}
    )
    assert len(texts) == len(STAGES)
    assert all(name in yaml.safe_load(text) for name, text in zip(STAGES, texts, strict=True))
    together = load_params(tmp_path / "settings")
    assert list(yaml.safe_load((tmp_path / "settings").read_text("utf-8"))) == list(SECTIONS)
    assert together == parse_params({"tune": {"epochs": 3}})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("tune: {epoch: 3}", "did you mean epochs"),
        ("tune: {epochs: many}", "tune.epochs = 'many'"),
        ("tunes: {epochs: 3}", "did you mean tune"),
        ("tune: {epochs: 3", "overrides is not valid YAML"),
        ("tune.epochs=3", "overrides must hold sections"),
        ("- 1", "overrides must hold sections"),
    ],
)
def test_a_wrong_override_names_the_key_and_the_fix(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        merge_params("", {}, overrides)


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_component("encode", "", knowledge=Port(str(tmp_path / "no")), features=Port(str(tmp_path / "features")))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: encode needs knowledge at ")
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_hands_on_its_verdict_and_what_it_wrote(
    encoded: Mapping[str, Path], small_params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = {"prepared": Port(str(encoded["prepared"])), "validation": Port(str(tmp_path / "validation"))}
    params = small_params.dump(["validate"]) | {"validate": {"min_side_px": 64}}
    problem = run_check("validate", yaml.safe_dump(params), **ports)
    assert problem.startswith("validate: ")
    assert (tmp_path / "validation/index.html").is_file()
    with pytest.raises(SystemExit) as ended:
        require_none(problem)
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"error: {problem}"


@pytest.mark.parametrize(
    ("sentence", "provider", "check"),
    [("What is a bag made of, and who wears it?", "curated", "question"), ("", "completed", "missing")],
)
def test_sentences_that_are_refused_or_missing_are_in_the_output_with_their_page(
    encoded: Mapping[str, Path],
    small_params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sentence: str,
    provider: str,
    check: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    content = json.loads(Path(small_params.describe.path).read_text("utf-8"))
    content["classes"][0]["sentences"][DIMENSIONS[0]] = sentence
    write_json(tmp_path / "knowledge.json", content)
    ports = {name: Port(str(encoded[name])) for name in ("prepared", "probe")}
    with running(lambda _, payload: failure(500, "down")) as chat:
        llm = {"model": "stub", "base_url": chat.url, "max_retries": 0, "store": str(tmp_path / "answers.sqlite")}
        section = {"provider": provider, "path": str(tmp_path / "knowledge.json"), "llm": llm}
        text = yaml.safe_dump({"describe": section})
        problem = run_check("describe", text, **ports, knowledge=Port(str(tmp_path / "out")))
    assert problem.startswith("describe: ")
    assert problem.endswith("the outputs of the task describe show it")
    findings = json.loads((tmp_path / "out/audit.json").read_text("utf-8"))["findings"]
    assert check in {finding["check"] for finding in findings if finding["level"] == "error"}
    assert (tmp_path / "out/index.html").is_file()


def test_a_check_that_passes_has_nothing_to_say(
    encoded: Mapping[str, Path], small_params: Params, tmp_path: Path
) -> None:
    ports = {"prepared": Port(str(encoded["prepared"])), "validation": Port(str(tmp_path / "validation"))}
    assert run_check("validate", yaml.safe_dump(small_params.dump(["validate"])), **ports) == ""
    require_none("")


def test_metadata_come_from_the_file_or_from_run_json_inside(tmp_path: Path) -> None:
    write_json(tmp_path / "registration", {"version": "3", "alias": "challenger", "checks": [1]})
    assert summarise(tmp_path / "registration") == {"version": "3", "alias": "challenger"}
    (tmp_path / "model").mkdir()
    assert summarise(tmp_path / "model") == {}
    write_json(tmp_path / "model" / "run.json", {"run_id": "abc"})
    assert summarise(tmp_path / "model") == {"run_id": "abc"}


def test_metrics_are_flat_numbers(tmp_path: Path) -> None:
    write_json(
        tmp_path / "metrics.json", {"zero_shot": {"all": 0.7}, "base": {"all": 0.75}, "fused": {"all": 0.8, "few": 0.6}}
    )
    view = Port("")
    show_metrics(Port(str(tmp_path)), view)
    assert view.metadata == {"zero_shot.all": 70, "base.all": 75, "fused.all": 80, "fused.few": 60}


def test_confusion_counts_pairs_with_rows_actual(tmp_path: Path) -> None:
    (tmp_path / "confusion.csv").write_text("actual,predicted\nNA,bag\nNA,NA\nbag,bag\nNA,bag\n", "utf-8")
    view = Port("")
    show_confusion(Port(str(tmp_path)), view)
    assert view.matrix == (["NA", "bag"], [[1, 2], [0, 1]])


def test_a_confusion_matrix_too_large_to_draw_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "confusion.csv").write_text("actual,predicted\na,b\nc,a\n", "utf-8")
    monkeypatch.setattr(components, "CONFUSION_MAX_CLASSES", 2)
    view = Port("")
    with caplog.at_level(logging.INFO, logger="mdpr"):
        show_confusion(Port(str(tmp_path)), view)
    assert view.matrix is None
    assert "3 classes, at most 2" in caplog.text


def test_what_must_outlive_a_task_is_in_the_workspace(tmp_path: Path) -> None:
    params = parse_params({"describe": {"llm": {"store": "data/answers.sqlite"}}, "tune": {"epochs": 3}})
    kept, folders = [], []
    for output in ("/minio/1/a", "/minio/1/a", "/minio/2/a"):
        folders.append(state_folder(tmp_path, Path(output)))
        kept.append(keep_state(params, folders[-1]))
    assert kept[0] == kept[1] != kept[2]
    assert folders[0] == folders[1] != folders[2]
    assert all(folder.parent == tmp_path for folder in folders)
    assert Path(kept[0].describe.llm.store).parent == folders[0]
    assert [Path(item.tracking.outbox).parent for item in kept] == folders
    assert kept[0].tune == params.tune
    shared = parse_params({"describe": {"llm": {"store": "/data/answers.sqlite"}}})
    assert keep_state(shared, tmp_path).describe.llm.store == "/data/answers.sqlite"
    assert CHECKPOINTS not in os.environ


def test_a_server_that_is_down_costs_its_time_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for task in "abc":
        (tmp_path / task / OUTBOX).mkdir(parents=True)
    publish_workspace(tmp_path)
    assert [str(tmp_path) in line for line in caplog.messages] == [True]
