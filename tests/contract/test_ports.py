"""One definition, three drivers: the command line, DVC and Kubeflow agree with the stages' signatures."""

from __future__ import annotations

import shlex
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml
from components.readme import COMPONENTS, load_component, stale
from pipelines.cluster import ClusterProfile
from pipelines.compile import FOLDER
from pipelines.compile import compiled as compiled_file
from pipelines.compile import stale as stale_pipelines

from mdpr.cli import stage_command
from mdpr.params import SECTIONS
from mdpr.stages.stage import STAGES, load_stage

PROJECT = Path(__file__).resolve().parents[2]
# Beside the ports: what the UI can draw, the verdict that another task reads, a part in place of a whole data set.
VIEWS = {
    "evaluate": {"metrics", "confusion", "report", "summary"},
    "validate": {"docs", "Output"},
    "describe": {"page", "Output"},
    "prepare": {"classes"},
}
DRIVER_OPTIONS = {"params", "overrides", "help"}


@pytest.fixture(scope="module")
def dvc() -> dict[str, Any]:
    stages: dict[str, Any] = yaml.safe_load((PROJECT / "dvc.yaml").read_text("utf-8"))["stages"]
    return stages


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    document: dict[str, Any] = next(yaml.safe_load_all(compiled_file(FOLDER, "training").read_text("utf-8")))
    return document


def dvc_ports(stage: dict[str, Any]) -> dict[str, str]:
    """Port -> path, from the options of a stage's command."""
    program, _, *options = shlex.split(stage["cmd"])
    assert program == "${mdpr}"
    return dict(zip((name.removeprefix("--") for name in options[::2]), options[1::2], strict=True))


# --- the stages --------------------------------------------------------------------------------------------


def test_stages_stand_in_an_order_in_which_they_can_run() -> None:
    producers = {port: name for name in STAGES for port in load_stage(name).outputs}
    graph = {name: {producers[port] for port in load_stage(name).inputs} for name in STAGES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError
    order = list(STAGES)
    assert [(name, on) for name in STAGES for on in graph[name] if order.index(on) >= order.index(name)] == []


# --- the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_command_takes_exactly_the_ports(name: str) -> None:
    stage = load_stage(name)
    own = {f"setting_{key}" for key in SECTIONS[name].model_fields}
    parameters = {parameter.name for parameter in stage_command(stage).params}
    assert parameters - DRIVER_OPTIONS - own - set(stage.otherwise) == set(stage.ports)


# --- DVC --------------------------------------------------------------------------------------------------


def test_dvc_starts_mdpr_by_name_from_any_machine() -> None:
    (variables,) = yaml.safe_load((PROJECT / "dvc.yaml").read_text("utf-8"))["vars"]
    assert variables == {"mdpr": 'PATH="$PATH:$DVC_ROOT/.venv/bin" mdpr'}


def test_dvc_has_the_stages_in_order(dvc: dict[str, Any]) -> None:
    assert list(dvc) == list(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_dvc_command_names_the_stage_and_its_ports(name: str, dvc: dict[str, Any]) -> None:
    assert shlex.split(dvc[name]["cmd"])[1] == name
    assert set(dvc_ports(dvc[name])) == set(load_stage(name).ports)


@pytest.mark.parametrize("name", STAGES)
def test_dvc_deps_and_outs_are_the_ports(name: str, dvc: dict[str, Any]) -> None:
    stage, ports = load_stage(name), dvc_ports(dvc[name])
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in dvc[name]["outs"]]
    assert set(outs) == {ports[port] for port in stage.outputs}
    assert {ports[port] for port in stage.inputs} <= set(dvc[name]["deps"])


@pytest.mark.parametrize("name", STAGES)
def test_dvc_watches_exactly_the_sections_of_the_stage(name: str, dvc: dict[str, Any]) -> None:
    assert set(dvc[name]["params"]) == set(load_stage(name).sections.values())


def test_dvc_gives_a_port_the_same_path_everywhere(dvc: dict[str, Any]) -> None:
    paths: dict[str, set[str]] = {}
    for stage in dvc.values():
        for port, path in dvc_ports(stage).items():
            paths.setdefault(port, set()).add(path)
    assert {port: found for port, found in paths.items() if len(found) > 1} == {}


# --- Kubeflow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_component_has_the_ports_the_params_and_its_views(name: str) -> None:
    spec, stage = load_component(name).component_spec, load_stage(name)
    assert set(spec.inputs) - {"workspace"} == {"params", *stage.inputs}
    assert set(spec.outputs) == set(stage.outputs) | VIEWS.get(name, set())


@pytest.mark.parametrize("name", COMPONENTS)
def test_component_and_every_port_are_described(name: str) -> None:
    spec = load_component(name).component_spec
    ports = {**(spec.inputs or {}), **(spec.outputs or {})}
    assert spec.description
    assert [port for port, content in ports.items() if not content.description] == []


@pytest.mark.parametrize("name", STAGES)
def test_component_names_the_sections_it_reads(name: str) -> None:
    described = load_component(name).component_spec.inputs["params"].description
    named = {word.strip(".,") for word in described.split()} & set(SECTIONS)
    assert named == set(load_stage(name).sections.values())


def test_ports_have_one_kubeflow_type() -> None:
    types: dict[str, set[str]] = {}
    for name in STAGES:
        spec = load_component(name).component_spec
        for port in load_stage(name).ports:
            types.setdefault(port, set()).add({**spec.inputs, **spec.outputs}[port].type)
    assert {port: found for port, found in types.items() if len(found) > 1} == {}


def test_configure_splits_for_exactly_the_stages() -> None:
    assert set(load_component("configure").component_spec.outputs) == {*STAGES, "settings"}


def test_compiled_pipelines_and_their_pictures_are_current() -> None:
    assert stale_pipelines(FOLDER, ClusterProfile()) == [], "run mdpr pipeline compile"


def test_component_readmes_are_current() -> None:
    assert stale(PROJECT / "components") == [], "run python -m components.readme --write"


def graph(compiled: dict[str, Any]) -> dict[str, Any]:
    """The tasks inside the exit handler: all but `close`."""
    tasks: dict[str, Any] = compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return tasks


def test_close_runs_however_the_stages_end(compiled: dict[str, Any]) -> None:
    tasks = compiled["root"]["dag"]["tasks"]
    assert set(tasks) == {"exit-handler-1", "close"}
    assert tasks["close"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert tasks["close"]["dependentTasks"] == ["exit-handler-1"]


def test_compiled_graph_connects_the_ports_of_the_stages(compiled: dict[str, Any]) -> None:
    tasks = graph(compiled)
    assert set(tasks) == {"configure", "require", "require-2", *STAGES}
    for name in STAGES:
        inputs = tasks[name]["inputs"]
        assert inputs["parameters"]["params"]["taskOutputParameter"] == {
            "producerTask": "configure",
            "outputParameterKey": name,
        }
        for port in load_stage(name).inputs:
            source = inputs["artifacts"][port]["taskOutputArtifact"]
            assert source["outputArtifactKey"] == ("classes" if (name, port) == ("describe", "prepared") else port)
            assert port in load_stage(source["producerTask"]).outputs


def test_nothing_is_computed_before_the_data_and_the_sentences_are_checked(compiled: dict[str, Any]) -> None:
    tasks = graph(compiled)
    for judge, check, later in (("validate", "require", "probe"), ("describe", "require-2", "encode")):
        problem = tasks[check]["inputs"]["parameters"]["problem"]["taskOutputParameter"]
        assert problem == {"producerTask": judge, "outputParameterKey": "Output"}
        assert check in tasks[later]["dependentTasks"]


def test_registry_tasks_are_never_cached(compiled: dict[str, Any]) -> None:
    tasks = graph(compiled)
    cached = {name for name in tasks if tasks[name]["cachingOptions"].get("enableCache")}
    assert cached == set(tasks) - {"configure", "prepare", "require", "require-2", "register", "promote"}
