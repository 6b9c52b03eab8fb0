"""What a site file says reaches the tasks it is meant for, in the Kubernetes options of the compiled pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines.compile import compile_pipeline
from pipelines.placement import DATA_SECRET, LLM_SECRET, MLFLOW_LOGIN_SECRET, MLFLOW_SECRET, PLACEMENTS
from pipelines.site import Site, read_site
from pipelines.variants import VARIANTS
from tests.contract.site_file import SITE

from mdpr.errors import ConfigError
from mdpr.stages.stage import STAGES

ON_GPU = {"probe", "encode", "tune", "evaluate"}


def compiled(folder: Path, site: Site, variant: str = "training") -> tuple[dict[str, Any], dict[str, Any]]:
    """Task -> container, and task -> Kubernetes options."""
    compile_pipeline(folder / "pipeline.yaml", site, variant)
    pipeline, platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text("utf-8"))
    containers = {name: item["container"] for name, item in pipeline["deploymentSpec"]["executors"].items()}
    options = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    short = len("exec-")
    return {name[short:]: item for name, item in containers.items()}, {k[short:]: v for k, v in options.items()}


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    return compiled(tmp_path_factory.mktemp("site"), Site.model_validate(SITE))


def tasks_with(options: dict[str, Any], key: str) -> set[str]:
    return {name for name, content in options.items() if content.get(key)}


def test_every_task_of_every_pipeline_has_a_placement_and_no_other(tmp_path: Path) -> None:
    tasks = [set(compiled(tmp_path, Site(), variant)[0]) for variant in VARIANTS]
    assert set.union(*tasks) == set(PLACEMENTS)


def test_images_and_gpus_reach_their_tasks(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    containers, _ = placed
    assert set(containers) == {"configure", *STAGES, "close"}
    assert {name for name, item in containers.items() if item["image"] == SITE["image_gpu"]} == ON_GPU
    assert {item["image"] for name, item in containers.items() if name not in ON_GPU} == {SITE["image_cpu"]}
    accelerators = {name: item["resources"].get("accelerator") for name, item in containers.items()}
    assert {name for name, item in accelerators.items() if item} == ON_GPU
    assert accelerators["tune"]["resourceCount"] == "2"
    assert accelerators["tune"]["resourceType"] == "example.org/gpu"


def test_tune_alone_runs_a_process_on_each_of_its_gpus(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    containers, _ = placed
    environments = {name: item["env"] for name, item in containers.items() if "env" in item}
    assert environments == {"tune": [{"name": "MDPR_PROCESSES", "value": "2"}]}


def test_volumes_and_nodes_reach_their_tasks(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, options = placed
    assert tasks_with(options, "pvcMount") == {*ON_GPU, "prepare", "describe"}
    assert options["prepare"]["pvcMount"][0]["mountPath"] == "/sets"
    assert tasks_with(options, "nodeSelector") == tasks_with(options, "tolerations") == ON_GPU
    assert options["tune"]["nodeSelector"]["labels"] == {"accelerator": "h100"}
    assert options["tune"]["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert tasks_with(options, "emptyDirMounts") == ON_GPU
    (shm,) = options["tune"]["emptyDirMounts"]
    assert (shm["mountPath"], shm["medium"], shm["sizeLimit"]) == ("/dev/shm", "Memory", "3Gi")  # noqa: S108
    assert tasks_with(options, "imagePullSecret") == tasks_with(options, "activeDeadlineSeconds") == set(options)
    assert set(options) == {"configure", *STAGES, "close"}


def test_secrets_are_names_and_only_where_they_are_needed(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, options = placed
    used = {
        name: {item["secretName"]: item.get("optional", False) for item in content.get("secretAsEnv", ())}
        for name, content in options.items()
    }
    tracking = {MLFLOW_SECRET: False, MLFLOW_LOGIN_SECRET: True}
    assert {name: found for name, found in used.items() if found} == {
        **dict.fromkeys(("tune", "evaluate", "register", "promote", "close"), tracking),
        "describe": {LLM_SECRET: True},
        "prepare": {DATA_SECRET: True},
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_secret_of_this_environment_is_compiled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "KFP_TOKEN"):
        monkeypatch.setenv(name, f"hidden-{name}")
    compile_pipeline(tmp_path / "pipeline.yaml", Site(), variant)
    assert "hidden-" not in (tmp_path / "pipeline.yaml").read_text("utf-8")


def test_a_cluster_without_gpus_asks_for_none(tmp_path: Path) -> None:
    containers, _ = compiled(tmp_path, Site(gpus=0))
    assert [name for name, item in containers.items() if "accelerator" in item["resources"]] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gpu: 1", "gpu is not a setting; did you mean gpus"),
        ("gpus: -1", "gpus"),
        ("shm_size: 8 GB", "shm_size"),
        ("data_claim: Image_Sets", "data_claim"),
        ("data_path: data", "data_path"),
        ("tolerations: [{operator: Exists, value: x}]", "tolerations.0: .*takes no value"),
        ("tolerations: [{value: x}]", "tolerations.0: .*needs a key"),
        ("[]", "must hold"),
    ],
)
def test_a_mistake_in_the_site_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "site.yaml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=named) as raised:
        read_site(tmp_path / "site.yaml")
    assert "\n" not in str(raised.value)
