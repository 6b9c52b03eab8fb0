"""The graphs: the pipelines `knowledge` and `sweep` are made of the training pipeline's own pieces."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from components.readme import load_component
from pipelines.cluster import ClusterProfile
from pipelines.compile import FOLDER, GRAPHS, draw, stale, with_pictures, write_pipelines
from pipelines.graphs import CHOICES, VARIANTS
from pipelines.options import arguments, read_params

from mdpr.errors import ConfigError
from mdpr.params import apply_overrides, parse_params
from mdpr.stages.stage import STAGES

LOOP = "for-loop-2"
CHECKS = {"require", "require-2"}  # behind validate, and behind describe


def document(variant: str) -> dict[str, Any]:
    """The first document of the compiled pipeline: its graph."""
    made: dict[str, Any] = next(yaml.safe_load_all((FOLDER / f"{variant}.yaml").read_text("utf-8")))
    return made


def tasks(variant: str, frame: str = "exit-handler-1") -> dict[str, Any]:
    found: dict[str, Any] = document(variant)["components"][f"comp-{frame}"]["dag"]["tasks"]
    return found


@pytest.mark.parametrize(
    ("variant", "expected", "looped"),
    [
        (
            "knowledge",
            {"configure", "prepare", "validate", "require", "probe", "shard", "merge", "require-3"},
            {"describe", "require-2"},
        ),
        ("sweep", {"configure", *STAGES, *CHECKS, "vary", "select"} - {"tune"}, {"tune"}),
    ],
)
def test_the_loop_holds_the_one_stage_that_is_repeated(variant: str, expected: set[str], looped: set[str]) -> None:
    assert set(tasks(variant)) == {*expected, LOOP}
    assert set(tasks(variant, LOOP)) == looped


def test_a_successor_is_trained_only_if_monitor_advises_it() -> None:
    found = tasks("retraining")
    assert set(found) == {"configure", "monitor", "condition-2"}
    assert set(tasks("retraining", "condition-2")) == {*STAGES, *CHECKS}
    condition = found["condition-2"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--monitor-Output'] == 'retrain'"
    assert not found["monitor"]["cachingOptions"].get("enableCache")  # the log grows behind the same path
    assert 'subgraph condition-2 ["if monitor is retrain"]' in draw(FOLDER / "retraining.yaml")


@pytest.mark.parametrize(("variant", "source"), [("knowledge", "shard"), ("sweep", "vary")])
def test_the_loop_runs_over_the_parameters_made_for_it(variant: str, source: str) -> None:
    looped = next(task for name, task in tasks(variant, LOOP).items() if name in STAGES)
    item = f"pipelinechannel--{source}-Output-loop-item"
    assert tasks(variant)[LOOP]["parameterIterator"]["itemInput"] == item
    assert looped["inputs"]["parameters"]["params"] == {"componentInputParameter": item}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_task_of_several_pipelines_is_the_same_component_in_each(variant: str) -> None:
    ours, training = document(variant), document("training")
    shared = {name for name in ours["components"] if "executorLabel" in ours["components"][name]}
    for name in shared & set(training["components"]):
        assert ours["components"][name] == training["components"][name]
        label = ours["components"][name]["executorLabel"]
        assert ours["deploymentSpec"]["executors"][label] == training["deploymentSpec"]["executors"][label]
    assert {f"comp-{name}" for name in ("configure", "prepare", "validate", "probe", "describe")} <= shared


def test_only_the_model_that_validation_chose_is_scored_and_registered() -> None:
    found = tasks("sweep")
    for name in ("evaluate", "register"):
        made = found[name]["inputs"]["artifacts"]["model"]["taskOutputArtifact"]
        assert made == {"producerTask": "select", "outputArtifactKey": "model"}
    (models,) = found["select"]["inputs"]["artifacts"].values()
    assert models["taskOutputArtifact"]["producerTask"] == LOOP
    assert found["select"]["dependentTasks"] == [LOOP]  # it sees the models and nothing else: no test images, no scores


@pytest.mark.parametrize("variant", VARIANTS)
def test_close_runs_however_a_pipeline_ends(variant: str) -> None:
    root = document(variant)["root"]["dag"]["tasks"]
    assert set(root) == {"exit-handler-1", "close"}
    assert root["close"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_the_ui_is_described_and_reaches_a_task(variant: str) -> None:
    pipeline = VARIANTS[variant].make(read_params(), ClusterProfile())
    assert [name for name, port in pipeline.component_spec.inputs.items() if not port.description] == []
    inside = {
        source["componentInputParameter"].removeprefix("pipelinechannel--")
        for task in tasks(variant).values()
        for source in task["inputs"].get("parameters", {}).values()
        if "componentInputParameter" in source
    }
    assert inside == set(pipeline.component_spec.inputs)


def test_what_a_pipeline_does_not_offer_is_as_params_yaml_says() -> None:
    given = tasks("knowledge")["configure"]["inputs"]["parameters"]
    constants = {name: item["runtimeValue"]["constant"] for name, item in given.items() if "runtimeValue" in item}
    assert constants["epochs"] == read_params()["tune"]["epochs"]
    assert set(given) == set(load_component("configure").component_spec.inputs)


# --- parameters from the command line ----------------------------------------------------------------------


def test_parameters_are_read_as_the_type_the_pipeline_takes() -> None:
    given = ["settings=[{tune: {seed: 5}}, 'tune: {seed: 6}']", "margin_points=2", "routing=false", "source=folder"]
    values = arguments(read_params(), "", [], "sweep", given)
    settings = [yaml.safe_load(text) for text in values.pop("settings")]
    assert settings == [{"tune": {"seed": 5}}, {"tune": {"seed": 6}}]
    assert values == {"recipe": "", "overrides": "", "margin_points": 2.0, "routing": False, "source": "folder"}


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("learning_rate=1e-3", 0.001),
        ("learning_rate=1E-6", 0.000001),
        ("learning_rate=.5", 0.5),
        ("learning_rate=+1e3", 1000.0),
        ("margin_points=1e1", 10.0),
        ("epochs=1e0", 1),
        ("epochs= 5", 5),
        ("epochs='5'", 5),
        ("seed=0x10", 16),
        ("routing=yes", True),
        ("routing=False", False),
        ("root=/data/set #2", "/data/set #2"),
        ("experiment=2024", "2024"),
    ],
)
def test_a_parameter_is_read_as_set_reads_its_setting(parameter: str, value: Any) -> None:
    name, _, text = parameter.partition("=")
    read = arguments(read_params(), "", [], "training", [parameter])[name]
    assert (read, type(read)) == (value, type(value))
    *sections, key = CHOICES[name].key.split(".")
    found = parse_params(apply_overrides({}, [f"{CHOICES[name].key}={text}"])).dump()
    for section in sections:
        found = found[section]
    assert found[key] == value


@pytest.mark.parametrize(
    ("variant", "parameter", "named"),
    [
        ("training", "shards=2", "the pipeline training takes NAME=VALUE of source, "),
        ("knowledge", "shards", "takes NAME=VALUE"),
        ("training", "epoch=3", "any other setting is --set SECTION.KEY=VALUE"),
        ("knowledge", "shards=two", "must be of type int"),
        ("knowledge", "shards=true", "must be of type int"),
        ("knowledge", "shards=[", "is not valid YAML"),
        ("knowledge", "shards=010", "may be octal"),
        ("training", "learning_rate=1e400", "must be a finite number"),
        ("training", "learning_rate=nan", "must be a finite number"),
        ("training", "seed=010", "may be octal"),
        ("training", "epochs=1:30", "quote it"),
        ("training", "routing=0", "tune.routing = 0: must be true or false"),
        ("training", "epochs=true", "tune.epochs = True: must be a whole number"),
        ("training", "model_name=team/mdpr", "tracking.model_name"),
        ("knowledge", "shards=0", "shards = 0"),
        ("sweep", "settings=[]", "settings is empty"),
        ("sweep", "settings=[tune: {sed: 1}]", "did you mean seed"),
        ("sweep", "epochs=0", "tune.epochs = 0"),
        ("training", "margin_points=-1", "promote.margin_points = -1"),
        ("training", "recipe=cifar100-lt", "takes NAME=VALUE"),  # --recipe is its place
    ],
)
def test_a_parameter_that_does_not_fit_is_one_line(variant: str, parameter: str, named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        arguments(read_params(), "", [], variant, [parameter])
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


# --- the pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_picture_shows_every_task_and_every_artifact_handed_on(variant: str) -> None:
    picture = draw(FOLDER / f"{variant}.yaml")
    components = document(variant)["components"]
    for name, component in components.items():
        if "executorLabel" in component:
            assert any(line.strip().startswith(name.removeprefix("comp-")) for line in picture.splitlines())
    taken = {line.strip() for line in picture.splitlines() if " -- " in line}
    expected = sum(
        len(item.get("inputDefinitions", {}).get("artifacts", {})) for item in components.values() if "dag" not in item
    )
    assert len(taken) == expected


def test_the_picture_of_the_sweep_goes_through_the_loop() -> None:
    lines = {line.strip() for line in draw(FOLDER / "sweep.yaml").splitlines()}
    assert {
        "encode -- features --> for-loop-2",
        "for-loop-2 -- model --> select",
        "select -- model --> register",
    } <= lines
    assert 'subgraph for-loop-2 ["for each of vary"]' in lines
    assert "vary -.-> for-loop-2" in lines


def test_a_file_that_is_missing_or_changed_is_stale(tmp_path: Path) -> None:
    for name in ("training.yaml", "retraining.yaml", "knowledge.yaml", GRAPHS):
        shutil.copy(FOLDER / name, tmp_path / name)
    text = (tmp_path / GRAPHS).read_text("utf-8")
    (tmp_path / GRAPHS).write_text(text.replace("for-loop-2 -- model --> select", "for-loop-2 --> select"), "utf-8")
    assert [path.name for path in stale(tmp_path, ClusterProfile())] == ["sweep.yaml", GRAPHS]
    write_pipelines(tmp_path, ClusterProfile())
    assert (tmp_path / GRAPHS).read_text("utf-8") == text


@pytest.mark.parametrize("text", ["", "<!-- graph of training --> <!-- graph of training -->"])
def test_a_readme_without_its_marks_says_so(text: str) -> None:
    with pytest.raises(ConfigError, match="graph of training"):
        with_pictures(text, {"training": FOLDER / "training.yaml"})
