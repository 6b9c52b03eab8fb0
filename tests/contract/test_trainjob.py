"""The manifest for Kubeflow Trainer, against the models that the project publishes with its API."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models import IoK8sApiCoreV1ConfigMap, TrainerV1alpha1TrainJob
from pipelines.cluster import PLACEMENTS
from pipelines.trainjob import trainjob_command
from tests.contract.cluster_profile import PROFILE

from mdpr.errors import ConfigError
from mdpr.params import load_params
from mdpr.stages.stage import load_stage

OFFER = PROFILE | {"gpus": 4, "tasks": {"tune": {"cpu": "16"}}}


def manifest(*options: str, folder: Path, profile: Mapping[str, Any] = OFFER) -> tuple[dict[str, Any], dict[str, Any]]:
    """ConfigMap and TrainJob, as the command prints them."""
    (folder / "cluster.yaml").write_text(yaml.safe_dump(dict(profile)), "utf-8")
    output = io.StringIO()
    with redirect_stdout(output):
        trainjob_command.main(
            ["--pvc", "work", "--cluster", str(folder / "cluster.yaml"), *options], standalone_mode=False
        )
    config, job = yaml.safe_load_all(output.getvalue())
    return config, job


@pytest.mark.parametrize("profile", [OFFER, {"gpus": 0}], ids=["everything", "least"])
def test_the_api_takes_it_and_drops_no_field(tmp_path: Path, profile: Mapping[str, Any]) -> None:
    """The models check the type of every field they know, and leave out what they do not know."""
    config, job = manifest(folder=tmp_path, profile=profile)
    assert TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    assert IoK8sApiCoreV1ConfigMap.from_dict(config).to_dict() == config


def test_a_field_the_api_does_not_know_would_be_seen(tmp_path: Path) -> None:
    _, job = manifest(folder=tmp_path)
    job["spec"]["trainer"]["procPerNode"] = 4
    assert TrainerV1alpha1TrainJob.from_dict(job).to_dict() != job
    del job["spec"]["trainer"]["procPerNode"]
    job["spec"]["trainer"]["numNodes"] = "2"
    with pytest.raises(ValueError, match="numNodes"):
        TrainerV1alpha1TrainJob.from_dict(job)


def test_the_profile_reaches_the_nodes(tmp_path: Path) -> None:
    _, job = manifest("--nodes", "3", folder=tmp_path)
    trainer = job["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (OFFER["image_gpu"], 3, 4)
    limits = {"cpu": "16", "memory": PLACEMENTS["tune"].memory, "example.org/gpu": "4"}
    assert trainer["resourcesPerNode"] == {"limits": limits, "requests": limits}
    pod = pod_of(job)
    assert (pod["nodeSelector"], pod["tolerations"]) == (OFFER["node_selector"], OFFER["tolerations"])
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    paths = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[paths["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}  # noqa: S108
    assert volumes[paths["/mnt/mdpr"]]["persistentVolumeClaim"] == {"claimName": "work"}
    assert volumes[paths["/sets"]]["persistentVolumeClaim"] == {"claimName": "image-sets"}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    assert node["name"] == pod["containers"][0]["name"] == "node"  # as the runtime torch-distributed calls them
    return pod


def test_a_claim_that_serves_twice_is_one_volume(tmp_path: Path) -> None:
    _, job = manifest(folder=tmp_path, profile=OFFER | {"data_claim": "work"})
    claims = [volume for volume in pod_of(job)["volumes"] if "persistentVolumeClaim" in volume]
    assert len(claims) == 1
    mounts = [mount for mount in pod_of(job)["containers"][0]["volumeMounts"] if mount["name"] == claims[0]["name"]]
    assert [mount["mountPath"] for mount in mounts] == ["/mnt/mdpr", "/sets"]


def test_the_parameters_are_those_that_tune_reads(tmp_path: Path) -> None:
    config, job = manifest("--set", "tune.epochs=3", folder=tmp_path)
    (tmp_path / "params.yaml").write_text(config["data"]["params.yaml"], "utf-8")
    sections = load_params(tmp_path / "params.yaml")
    expected = load_params(Path("params.yaml"), ["tune.epochs=3"])
    read = load_stage("tune").sections.values()
    assert sections.dump(read) == expected.dump(read)
    (volume,) = (item for item in pod_of(job)["volumes"] if "configMap" in item)
    assert volume["configMap"]["name"] == config["metadata"]["name"]


def test_the_command_is_tune_with_its_ports_on_the_shared_volume(tmp_path: Path) -> None:
    _, job = manifest("--folder", "runs/maple", folder=tmp_path)
    arguments = job["spec"]["trainer"]["args"]
    given = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    ports = {f"--{port}": f"/mnt/mdpr/runs/maple/{port}" for port in load_stage("tune").ports}
    assert given == {"--params": "/etc/mdpr/params.yaml", **ports}


def test_secrets_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, f"hidden-{name}")
    config, job = manifest(folder=tmp_path)
    assert "hidden-" not in yaml.safe_dump_all([config, job])
    optional = {
        item["name"]: item["valueFrom"]["secretKeyRef"].get("optional", False)
        for item in job["spec"]["trainer"]["env"]
        if "valueFrom" in item
    }
    assert optional["MLFLOW_TRACKING_URI"] is False
    assert optional["AWS_SECRET_ACCESS_KEY"] is True


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--name", "Big_Job"], "--name = 'Big_Job'"),
        (["--name", "x" * 41], "--name"),
        (["--nodes", "0"], "--nodes = 0"),
        (["--pvc", "a_b"], "--pvc = 'a_b'"),
        (["--folder", "../other"], "--folder = '../other'"),
        (["--folder", "/abs"], "--folder = '/abs'"),
        (["--nodes", "9"], "tune.batch_size = 32 is less than the 36 processes"),
        (["--output", "no/such/folder/job.yaml"], "no/such/folder does not exist"),
        (["--set", "tune.epoch=1"], "tune.epoch is not a setting"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, options: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        manifest(*options, folder=tmp_path)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_a_volume_it_says_which_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--pvc = ''.*name the PersistentVolumeClaim"):
        trainjob_command.main([], standalone_mode=False)
