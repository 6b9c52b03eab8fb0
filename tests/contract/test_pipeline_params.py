"""Parameters of the pipeline: params.yaml's defaults, every choice delivered, nothing else touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from components.readme import load_component
from pipelines.training import read_params, training_pipeline

from mdpr.config import SECTIONS, load_params, parse_params
from mdpr.stages.definition import STAGES, load_stage
from mdpr.stages.kubeflow import merge_params

PROJECT = Path(__file__).resolve().parents[2]


def test_params_yaml_names_every_section() -> None:
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text("utf-8"))
    assert list(raw) == list(SECTIONS)
    assert parse_params(raw) == load_params(PROJECT / "params.yaml")


def test_pipeline_gives_every_stage_what_params_yaml_says() -> None:
    """The defaults of the UI, through `configure`'s own function, come back as params.yaml."""
    params = read_params()
    inputs = training_pipeline(params).component_spec.inputs
    values = {name: port.default for name, port in inputs.items()}
    assert [name for name, port in inputs.items() if not port.description] == []
    texts = load_component("configure").python_func(base=yaml.safe_dump(params), **values)
    for name, text in zip(STAGES, texts, strict=True):
        sections = load_stage(name).sections.values()
        assert yaml.safe_load(text) == {section: params[section] for section in sections}


def test_every_choice_of_the_ui_reaches_its_stage() -> None:
    """No parameter of `configure` is dropped: a value of its own appears in the text of some stage."""
    values: dict[str, Any] = {
        "source": "folder", "root": "R", "architecture": "A", "weights": "W", "prompting": "coop",
        "routing": False, "base_loss": "ldam", "epochs": 7, "batch_size": 77, "learning_rate": 0.0077,
        "seed": 777, "experiment": "E", "model_name": "N",
    }  # fmt: skip
    assert set(values) | {"overrides"} == set(training_pipeline(read_params()).component_spec.inputs)
    texts = load_component("configure").python_func(base="", overrides="tune: {augment: none}", **values)
    found = {section: keys for text in texts for section, keys in yaml.safe_load(text).items()}
    flat = {key: value for keys in found.values() for key, value in keys.items() if key != "seed"}
    assert {key: flat[key] for key in values if key not in ("seed", "batch_size")} == {
        key: value for key, value in values.items() if key not in ("seed", "batch_size")
    }
    assert (found["tune"]["seed"], found["tune"]["batch_size"], found["tune"]["augment"]) == (777, 77, "none")


def test_a_setting_of_tune_leaves_the_stages_before_it_alone() -> None:
    before, after = (merge_params("", {}, text) for text in ("", "tune: {epochs: 3}"))
    assert {name for name in STAGES if before[name] != after[name]} == {"tune"}
