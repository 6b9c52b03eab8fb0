"""Parameters of the pipeline: params.yaml's defaults, every choice delivered, nothing else touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from components.readme import load_component
from kfp.dsl import Artifact
from pipelines.cluster import ClusterProfile
from pipelines.graphs import VARIANTS
from pipelines.options import read_params

from mdpr.errors import ConfigError
from mdpr.kubeflow.components import merge_params
from mdpr.params import SECTIONS, load_params, parse_params
from mdpr.recipes import params_text, read_recipe
from mdpr.stages.stage import STAGES, load_stage

PROJECT = Path(__file__).resolve().parents[2]


def test_params_yaml_names_every_section() -> None:
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text("utf-8"))
    assert list(raw) == list(SECTIONS)
    assert parse_params(raw) == load_params(PROJECT / "params.yaml")


def configured(folder: Path, **values: Any) -> tuple[str, ...]:
    """What the component `configure` gives; its file of settings lands in `folder`."""
    settings = Artifact(uri=str(folder / "settings.yaml"))
    texts: tuple[str, ...] = load_component("configure").python_func(**values, settings=settings)
    return texts


def test_pipeline_gives_every_stage_what_params_yaml_says(tmp_path: Path) -> None:
    """The defaults of the UI, through `configure`'s own function, come back as params.yaml."""
    params = read_params()
    inputs = VARIANTS["training"].make(params, ClusterProfile()).component_spec.inputs
    values = {name: port.default for name, port in inputs.items()}
    assert [name for name, port in inputs.items() if not port.description] == []
    texts = configured(tmp_path, base=yaml.safe_dump(params), **values)
    assert load_params(tmp_path / "settings.yaml").dump() == params
    for name, text in zip(STAGES, texts, strict=True):
        sections = load_stage(name).sections.values()
        assert yaml.safe_load(text) == {section: params[section] for section in sections}


def test_every_choice_of_the_ui_reaches_its_stage(tmp_path: Path) -> None:
    """No parameter of `configure` is dropped: a value of its own appears in the text of some stage."""
    values: dict[str, Any] = {
        "source": "folder", "root": "R", "data_repo": "https://example.org/r.git", "data_rev": "v1", "data_path": "P",
        "architecture": "A", "weights": "W", "prompting": "coop",
        "routing": False, "base_loss": "ldam", "epochs": 7, "batch_size": 77, "learning_rate": 0.0077,
        "seed": 777, "provider": "llm", "llm_vendor": "anthropic", "llm_model": "L", "llm_base_url": "http://b",
        "margin_points": 1.25, "experiment": "E", "model_name": "N",
    }  # fmt: skip
    assert set(values) | {"recipe", "overrides"} == set(
        VARIANTS["training"].make(read_params(), ClusterProfile()).component_spec.inputs
    )
    texts = configured(tmp_path, base="", recipe="", overrides="tune: {augment: none}", **values)
    found = {section: keys for text in texts for section, keys in yaml.safe_load(text).items()}
    places = {
        "tracking": ("experiment", "model_name"),
        "prepare": ("source", "root"),
        "backbone": ("architecture", "weights"),
        "describe": ("provider",),
        "promote": ("margin_points",),
    }
    where = {name: found[section][name] for section, names in places.items() for name in names}
    where |= {f"data_{key}": found["prepare"][key] for key in ("repo", "rev", "path")}
    where |= {f"llm_{key}": found["describe"]["llm"][key] for key in ("vendor", "model", "base_url")}
    where |= {name: found["tune"][name] for name in set(values) - set(where)}
    assert where == values
    assert found["tune"]["augment"] == "none"


def test_a_recipe_gives_way_to_what_was_changed_and_to_nothing_else() -> None:
    """Defaults of the UI are params.yaml's: those that nobody touched must not overwrite the recipe."""
    params = read_params()
    base = yaml.safe_dump(params)
    untouched = {"tune": {key: params["tune"][key] for key in ("epochs", "batch_size", "prompting")}}
    changed = {"tune": {**untouched["tune"], "batch_size": 7}}
    expected = parse_params(yaml.safe_load(params_text(read_recipe("cifar100-lt"), None)))
    assert expected.tune.epochs != params["tune"]["epochs"]
    for choices, batch_size in ((untouched, expected.tune.batch_size), (changed, 7)):
        texts = merge_params(base, choices, "tune: {seed: 5}", "cifar100-lt")
        assert yaml.safe_load(texts["tune"])["tune"] == expected.tune.model_dump(mode="json") | {
            "batch_size": batch_size,
            "seed": 5,
        }
        assert yaml.safe_load(texts["prepare"])["prepare"] == expected.prepare.model_dump(mode="json")


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no recipe cifar100; did you mean cifar100-lt\?"):
        merge_params("", {}, "", "cifar100")


def test_a_setting_of_tune_leaves_the_stages_before_it_alone() -> None:
    before, after = (merge_params("", {}, text) for text in ("", "tune: {epochs: 3}"))
    assert {name for name in STAGES if before[name] != after[name]} == {"tune"}
