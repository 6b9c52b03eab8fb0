"""A cluster's profile reaches the tasks it is meant for, in the Kubernetes options of the compiled pipeline."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines.cluster import (
    DATA_SECRET,
    HUB_SECRET,
    LLM_SECRET,
    MLFLOW_LOGIN_SECRET,
    MLFLOW_SECRET,
    PLACEMENTS,
    ClusterProfile,
    TaskLimits,
    read_profile,
)
from pipelines.compile import compile_pipeline
from pipelines.graphs import VARIANTS
from tests.contract.cluster_profile import PROFILE

from mdpr.errors import ConfigError
from mdpr.kubeflow.components import one_line_errors
from mdpr.stages.stage import STAGES

ON_GPU = {"probe", "encode", "tune", "evaluate"}
TASKS = {"configure", "require", "require-2", *STAGES, "close"}


def compiled(folder: Path, profile: ClusterProfile, variant: str = "training") -> tuple[dict[str, Any], dict[str, Any]]:
    """Task -> container, and task -> Kubernetes options."""
    compile_pipeline(folder / "pipeline.yaml", profile, variant)
    pipeline, platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text("utf-8"))
    containers = {name: item["container"] for name, item in pipeline["deploymentSpec"]["executors"].items()}
    options = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    short = len("exec-")
    return {name[short:]: item for name, item in containers.items()}, {k[short:]: v for k, v in options.items()}


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    return compiled(tmp_path_factory.mktemp("profile"), ClusterProfile.model_validate(PROFILE))


def tasks_with(options: dict[str, Any], key: str) -> set[str]:
    return {name for name, content in options.items() if content.get(key)}


def test_every_task_of_every_pipeline_has_a_placement_and_no_other(tmp_path: Path) -> None:
    nodes = ClusterProfile(workspace_access="ReadWriteMany", tasks={"tune": TaskLimits(nodes=2)})
    profiles = [(ClusterProfile(), variant) for variant in VARIANTS] + [(nodes, "training")]
    tasks = [set(compiled(tmp_path, profile, variant)[0]) for profile, variant in profiles]
    assert {re.sub(r"-\d+$", "", name) for name in set.union(*tasks)} == set(PLACEMENTS)


def test_images_and_gpus_reach_their_tasks(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    containers, _ = placed
    assert set(containers) == TASKS
    assert {name for name, item in containers.items() if item["image"] == PROFILE["image_gpu"]} == ON_GPU
    assert {item["image"] for name, item in containers.items() if name not in ON_GPU} == {PROFILE["image_cpu"]}
    counts = {name: item["resources"].get("accelerator", {}).get("resourceCount") for name, item in containers.items()}
    assert {name: count for name, count in counts.items() if count} == {"probe": "2", "tune": "4", "evaluate": "2"}
    assert containers["tune"]["resources"]["accelerator"]["resourceType"] == "example.org/gpu"


def test_limits_of_single_tasks(placed: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    containers, options = placed
    usual, usual_options = compiled(tmp_path, ClusterProfile())
    changed = {name for name in usual if containers[name]["resources"] != usual[name]["resources"]}
    assert changed == {*ON_GPU, "promote"}
    limits = containers["tune"]["resources"]
    assert (limits["resourceCpuLimit"], limits["resourceMemoryLimit"]) == ("16", "64Gi")
    assert options["tune"]["activeDeadlineSeconds"] == "360000"
    assert options["probe"]["activeDeadlineSeconds"] == usual_options["probe"]["activeDeadlineSeconds"]


def test_only_tune_runs_a_process_on_each_of_its_gpus(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    containers, _ = placed
    proxy = {"name": "https_proxy", "value": "http://proxy:3128"}
    environments = {name: item["env"] for name, item in containers.items()}
    assert environments.pop("tune") == [proxy, {"name": "MDPR_PROCESSES", "value": "4"}]
    assert all(found == [proxy] for found in environments.values())


def test_volumes_and_nodes_reach_their_tasks(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, options = placed
    # Every stage may read a path of a setting: weights, images, a knowledge base, a policy.
    assert tasks_with(options, "pvcMount") == set(STAGES)
    assert options["prepare"]["pvcMount"][0]["mountPath"] == "/sets"
    selectors = {name: content["nodeSelector"]["labels"] for name, content in options.items()}
    assert {name for name, labels in selectors.items() if labels == {"accelerator": "h100"}} == ON_GPU
    assert all(selectors[name] == {"pool": "cpu"} for name in set(options) - ON_GPU)
    assert options["tune"]["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert options["prepare"]["tolerations"] == [{"key": "batch", "operator": "Equal", "value": "yes"}]
    assert tasks_with(options, "emptyDirMounts") == ON_GPU
    (shm,) = options["tune"]["emptyDirMounts"]
    assert (shm["mountPath"], shm["medium"], shm["sizeLimit"]) == ("/dev/shm", "Memory", "3Gi")  # noqa: S108
    assert tasks_with(options, "imagePullSecret") == tasks_with(options, "activeDeadlineSeconds") == set(options)
    assert set(options) == TASKS


def test_every_pod_has_labels_account_and_pull_policy(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, options = placed
    for content in options.values():
        assert content["imagePullPolicy"] == "Always"
        assert content["podMetadata"] == {"labels": PROFILE["labels"], "annotations": PROFILE["annotations"]}
        assert content["securityContext"] == {"runAsUser": "12345", "runAsGroup": "100"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_retry_is_neither_refused_nor_killed_by_the_limit_of_the_back_off(tmp_path: Path, variant: str) -> None:
    """Argo counts that limit from the start of the first attempt, and makes it the deadline of every retry.

    Source: argo-workflows v4.0.5, workflow/controller/operator.go, processNodeRetries; workflowpod.go, getDeadline.
    """
    compile_pipeline(tmp_path / "pipeline.yaml", ClusterProfile(), variant)
    pipeline, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8"))
    options = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    dags = [pipeline["root"]["dag"], *(item["dag"] for item in pipeline["components"].values() if "dag" in item)]
    tasks = {name: task for dag in dags for name, task in dag["tasks"].items()}
    retried = {name: task["retryPolicy"] for name, task in tasks.items() if "retryPolicy" in task}
    assert {"prepare", "probe", "describe", "close"} <= set(retried)
    for name, policy in retried.items():
        attempts = policy["maxRetryCount"] + 1
        timeout_s = int(options[f"exec-{name}"]["activeDeadlineSeconds"])
        pause_s, window_s = (int(policy[key].rstrip("s")) for key in ("backoffDuration", "backoffMaxDuration"))
        assert policy["backoffFactor"] == 2.0
        pauses_s = sum(pause_s * 2**number for number in range(attempts - 1))
        assert window_s >= attempts * (timeout_s + 3600) + pauses_s


STATEFUL = {"describe", "tune", "evaluate", "register", "promote", "monitor", "close"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_volume_of_the_run_is_mounted_where_something_must_outlive_a_pod(tmp_path: Path, variant: str) -> None:
    """Kubeflow mounts it where a parameter holds the placeholder of its path (backend/src/v2/driver/driver.go)."""
    for profile, expected in (
        (ClusterProfile.model_validate(PROFILE), STATEFUL),
        (ClusterProfile(workspace_size=""), set()),
    ):
        compile_pipeline(tmp_path / "pipeline.yaml", profile, variant)
        pipeline, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8"))
        dags = [pipeline["root"]["dag"], *(item["dag"] for item in pipeline["components"].values() if "dag" in item)]
        tasks = {name: task for dag in dags for name, task in dag["tasks"].items()}
        given = {
            name
            for name, task in tasks.items()
            for source in task.get("inputs", {}).get("parameters", {}).values()
            if source.get("runtimeValue", {}).get("constant") == "{{$.workspace_path}}"
        }
        assert given == expected & set(tasks)
        made = platform["platforms"]["kubernetes"].get("pipelineConfig", {}).get("workspace")
        if expected:
            claim = {"accessModes": ["ReadWriteMany"], "storageClassName": "shared"}
            assert made == {"size": "50Gi", "kubernetes": {"pvcSpecPatch": claim}}
        else:
            assert made is None


def test_secrets_are_names_and_only_where_they_are_needed(placed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, options = placed
    used = {
        name: {item["secretName"]: item.get("optional", False) for item in content.get("secretAsEnv", ())}
        for name, content in options.items()
    }
    tracking = {MLFLOW_SECRET: False, MLFLOW_LOGIN_SECRET: True}
    assert {name: found for name, found in used.items() if found} == {
        "register": tracking,
        "close": tracking,
        **{name: tracking | {HUB_SECRET: True} for name in ("tune", "evaluate", "promote")},
        **{name: {HUB_SECRET: True} for name in ("probe", "encode")},
        "describe": {LLM_SECRET: True},
        "prepare": {DATA_SECRET: True, HUB_SECRET: True},
    }


def test_keys_of_a_store_are_no_variables_that_the_launcher_reads(
    placed: tuple[dict[str, Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubeflow's launcher runs in the task's container, and AWS_* would redirect its own transfers."""
    _, options = placed
    keys = {
        item["secretKey"]: item["envVar"]
        for content in options.values()
        for secret in content.get("secretAsEnv", ())
        for item in secret["keyToEnv"]
    }
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} <= set(keys)
    assert [variable for variable in keys.values() if variable.startswith("AWS_")] == []
    for key, variable in keys.items():
        monkeypatch.delenv(key, raising=False)
        monkeypatch.setenv(variable, f"value of {key}")
    with one_line_errors():
        assert {key: os.environ[key] for key in keys} == {key: f"value of {key}" for key in keys}
    for key in keys:
        monkeypatch.delenv(key)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_secret_of_this_environment_is_compiled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "KFP_TOKEN"):
        monkeypatch.setenv(name, f"hidden-{name}")
    compile_pipeline(tmp_path / "pipeline.yaml", ClusterProfile(), variant)
    assert "hidden-" not in (tmp_path / "pipeline.yaml").read_text("utf-8")


def test_a_cluster_without_gpus_asks_for_none(tmp_path: Path) -> None:
    containers, _ = compiled(tmp_path, ClusterProfile(gpus=0))
    assert [name for name, item in containers.items() if "accelerator" in item["resources"]] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gpu: 1", "gpu is not a setting; did you mean gpus"),
        ("gpus: -1", "gpus"),
        ("shm_size: 8 GB", "shm_size"),
        ("data_claim: Image_Sets", "data_claim"),
        ("data_path: data", "data_path"),
        ("image_pull_policy: always", "image_pull_policy"),
        ("workspace_size: 20 GB", "workspace_size"),
        ("workspace_access: ReadOnlyMany", "workspace_access"),
        ("env: {1A: x}", "env.1A"),
        ("gpus: true", "gpus"),
        ("gpus: 010", "010 may be octal"),
        ("gpus: 1\ngpus: 2", "line 2 .*gpus is given twice"),
        ("tasks: {tuna: {gpus: 1}}", "there is no task tuna: there are configure"),
        ("tasks: {tune: {gpu: 1}}", "tasks.tune.gpu is not a setting"),
        ("tasks: {prepare: {gpus: 1}}", "prepare does not use a GPU"),
        ("tasks: {evaluate: {nodes: 2}}", "evaluate runs on one machine"),
        ("tasks: {tune: {nodes: 2}}", "tasks.tune.nodes = 2: .*ReadWriteMany"),
        ("workspace_access: ReadWriteMany\nworkspace_size: ''\ntasks: {tune: {nodes: 2}}", "workspace_size"),
        ("tasks: {tune: {memory: 64 GB}}", "tasks.tune.memory"),
        ("tasks: {tune: {timeout_s: 1}}", "tasks.tune.timeout_s"),
        ("tolerations: [{operator: Exists, value: x}]", "tolerations.0: .*takes no value"),
        ("tolerations: [{value: x}]", "tolerations.0: .*needs a key"),
        ("[]", "must hold"),
    ],
)
def test_a_mistake_in_a_profile_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=named) as raised:
        read_profile(tmp_path / "cluster.yaml")
    assert "\n" not in str(raised.value)
