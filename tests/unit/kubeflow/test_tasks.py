"""The tasks beside the stages: parameters for many tasks, the choice of a model, the last task of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mdpr.artifacts import ModelConfig, read_json, write_json
from mdpr.errors import ConfigError
from mdpr.kubeflow import tasks
from mdpr.kubeflow.components import merge_params
from mdpr.kubeflow.tasks import close_runs, params_per_setting, params_per_shard
from mdpr.mlops.store import connect
from mdpr.params import BackboneParams, Params, TuneParams, parse_params

LIMITS = {"requests_per_minute": 100, "tokens_per_minute": 9000}
PRICES = {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0}


@dataclass
class Port:
    """An artifact as Kubeflow hands it over."""

    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


def describe_text(**changes: Any) -> str:
    llm = {"model": "m", **LIMITS, **PRICES}
    return yaml.safe_dump({"describe": {"provider": "llm", "llm": llm, "budget_usd": 3.0, **changes}})


def test_shards_share_the_budget_and_the_limits_and_nothing_else() -> None:
    whole = parse_params(yaml.safe_load(describe_text())).dump()["describe"]
    texts = params_per_shard(describe_text(), 3)
    for number, text in enumerate(texts, start=1):
        (section,) = yaml.safe_load(text).values()
        assert section["shard"] == f"{number}/3"
        assert (section["budget_usd"], section["llm"]["requests_per_minute"]) == (1.0, 33)
        assert section["llm"]["tokens_per_minute"] == 3000
        changed = {key: whole[key] for key in ("shard", "budget_usd")}
        assert {**section, **changed, "llm": {**section["llm"], **LIMITS}} == whole


def test_no_limit_stays_no_limit() -> None:
    texts = params_per_shard("describe: {provider: curated}", 2)
    assert [yaml.safe_load(text)["describe"]["budget_usd"] for text in texts] == [0, 0]
    assert [yaml.safe_load(text)["describe"]["llm"]["requests_per_minute"] for text in texts] == [0, 0]


@pytest.mark.parametrize(
    ("text", "shards", "message"),
    [
        (describe_text(), 0, "shards = 0: must be 1 or more"),
        (describe_text(), 101, "requests_per_minute = 100 cannot be shared by 101 shards"),
        (describe_text(shard="1/2"), 2, "describe.shard = 1/2 is set"),
    ],
)
def test_shards_that_cannot_be_are_one_line(text: str, shards: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        params_per_shard(text, shards)


def test_settings_are_laid_over_tune_and_over_nothing_else() -> None:
    base = merge_params("", {}, "tune: {epochs: 5, loss: {tau: 0.5}}")["tune"]
    texts = params_per_setting(base, ["tune: {seed: 1}", "tune: {seed: 2, loss: {base: 2.0}}"])
    before = yaml.safe_load(base)
    for text, seed, weight in zip(texts, (1, 2), (1.0, 2.0), strict=True):
        after = yaml.safe_load(text)
        assert after["tune"].pop("seed") == seed
        assert after["tune"]["loss"].pop("base") == weight
        expected = yaml.safe_load(base)
        del expected["tune"]["seed"], expected["tune"]["loss"]["base"]
        assert after == expected
    assert yaml.safe_load(base) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "settings is empty"),
        (["tune: {sed: 1}"], "did you mean seed"),
        (["tune: {seed: 1}", "tune: {seed: 1}"], "are the same"),
        (["tune: {}", "tune: {seed: 0}"], "are the same"),  # 0 is the default
        (["prepare: {seed: 1}"], "prepare is not tune"),
        (["{tune: {seed: 1}"], "is not valid YAML"),
        (["seed=1"], "must hold sections"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        params_per_setting(merge_params("", {}, "")["tune"], settings)
    assert "\n" not in str(raised.value)


def test_a_mistake_ends_the_task_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tasks.vary_params("", ["tune: {epochs: 0}"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: tune.epochs = 0")


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., Port]:
    """tuned(name, accuracy, ...) -> what tune writes, weights left out; `settings` are of tune."""

    def make(name: str, accuracy: dict[str, float], **settings: Any) -> Port:
        folder = tmp_path / name
        folder.mkdir()
        config = ModelConfig(
            backbone=BackboneParams(),
            fingerprint="f",
            tune=TuneParams.model_validate(settings),
            class_names=("a", "b"),
            train_images=(2, 1),
            knowledge_digest="k",
            background="white",
            selected_epoch=1,
            tau=0.0,
            val_accuracy=accuracy,
        )
        write_json(folder / "config.json", config)
        (folder / "history.csv").write_text(name)
        return Port(str(folder), {"run_id": name})

    return make


def choose(models: list[Port], folder: Path) -> tuple[Port, str]:
    model, choice = Port(str(folder / "out" / "model")), Port(str(folder / "choice.md"))
    tasks.select_model(models, model, choice)
    return model, Path(choice.path).read_text("utf-8")


def test_the_best_on_validation_is_copied_with_its_metadata(tuned: Callable[..., Port], tmp_path: Path) -> None:
    models = [
        tuned("low", {"base": 0.9, "routed": 0.9, "fused": 0.6}, seed=1),
        tuned("high", {"base": 0.1, "routed": 0.1, "fused": 0.7}, seed=2),
        tuned("equal", {"base": 0.9, "routed": 0.9, "fused": 0.7}, seed=3),
    ]
    model, table = choose(models, tmp_path)
    assert (Path(model.path) / "history.csv").read_text() == "high"
    assert read_json(Path(model.path) / "config.json") == read_json(Path(models[1].path) / "config.json")
    assert model.metadata == {"run_id": "high"}
    lines = table.splitlines()
    assert lines[2] == "| model | seed | validation accuracy, percent | chosen |"
    assert lines[4:] == ["| 1 | 1 | 60.00 |  |", "| 2 | 2 | 70.00 | yes |", "| 3 | 3 | 70.00 |  |"]


def test_a_model_that_does_not_route_answers_with_its_base(tuned: Callable[..., Port], tmp_path: Path) -> None:
    models = [tuned("routes", {"base": 0.1, "fused": 0.6}), tuned("plain", {"base": 0.65}, routing=False)]
    assert choose(models, tmp_path)[0].metadata == {"run_id": "plain"}


def test_a_model_that_is_damaged_is_one_line_and_nothing_is_written(
    tuned: Callable[..., Port], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [tuned("whole", {"fused": 0.5}), tuned("damaged", {"fused": 0.9})]
    (Path(models[1].path) / "config.json").write_text("{")
    with pytest.raises(SystemExit):
        choose(models, tmp_path)
    assert "damaged/config.json is not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_merged_shards_are_what_describe_writes_in_one_piece(
    encoded: Mapping[str, Path], small_params: Params, tmp_path: Path
) -> None:
    """Byte by byte, whatever the order of the shards."""
    from mdpr.stages.stage import load_stage, run_stage

    text = yaml.safe_dump({"describe": small_params.describe.model_dump(mode="json")})
    shards = []
    for number, part in enumerate(params_per_shard(text, 3)):
        paths = {"prepared": encoded["prepared"], "probe": encoded["probe"], "knowledge": tmp_path / str(number)}
        run_stage(load_stage("describe"), paths, parse_params(yaml.safe_load(part)))
        shards.append(Port(str(paths["knowledge"])))
    inputs = {name: Port(str(encoded[name])) for name in ("prepared", "probe")}
    whole = Port(str(tmp_path / "whole"))
    assert tasks.merge_shards(text, shards[::-1], **inputs, knowledge=whole) == ""
    for name in ("knowledge.json", "audit.json", "index.html"):
        assert (Path(whole.path) / name).read_bytes() == (encoded["knowledge"] / name).read_bytes()
    shutil.rmtree(whole.path)
    with pytest.raises(SystemExit):
        tasks.merge_shards(text, shards[1:], **inputs, knowledge=whole)
    assert not Path(whole.path).exists()


@pytest.mark.parametrize("state", ["COMPLETE", "SUCCEEDED", "CACHED", "FAILED", "RUNNING", "CANCELED", "UNKNOWN"])
def test_the_exit_handler_reads_the_words_of_the_backend(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    """A run that a killed task left open is a failed one, unless the pipeline ended well: then it is not the task's."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("KFP_RUN_ID", "r1")
    client = connect().client
    left = client.create_run("0", tags={"kfp.run_id": "r1"})
    other = client.create_run("0", tags={"kfp.run_id": "r2"})
    close_runs(state)
    found = client.get_run(left.info.run_id).info.status
    assert found == ("RUNNING" if state in ("COMPLETE", "SUCCEEDED", "CACHED") else "FAILED")
    assert client.get_run(other.info.run_id).info.status == "RUNNING"
