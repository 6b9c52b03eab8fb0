"""The TrainJob of Kubeflow Trainer that runs `tune` on several nodes, as a cluster's profile has it.

`mdpr pipeline trainjob` prints one to be created by hand; in a pipeline the component `trainjob` completes and starts
it. Source: the API trainer.kubeflow.org/v1alpha1 and the runtime torch-distributed of kubeflow/trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mdpr.errors import ConfigError
from mdpr.kubeflow.components import read_sections
from mdpr.params import parse_params
from pipelines.cluster import (
    HUB_KEYS,
    HUB_SECRET,
    MLFLOW_KEYS,
    MLFLOW_LOGIN_KEYS,
    MLFLOW_LOGIN_SECRET,
    MLFLOW_SECRET,
    ClusterProfile,
)

RUNTIME = "torch-distributed"
NODE = "node"  # the runtime's job, and the container in it
MANAGER = "mdpr"  # who owns the patches of the runtime
STAGE = "tune"


def train_job(
    name: str,
    nodes: int,
    profile: ClusterProfile,
    arguments: Sequence[str] = (),
    claims: Mapping[str, str] | None = None,
    settings: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The manifest. `arguments`: of `mdpr tune`, after its name.

    `claims`: path in the containers -> PersistentVolumeClaim, beside the profile's data claim. `settings`: a ConfigMap
    and the path where its files are mounted.
    """
    gpus, placement = profile.gpus_of(STAGE), profile.placement(STAGE)
    limits = {"cpu": placement.cpu, "memory": placement.memory} | ({profile.gpu_type: str(gpus)} if gpus else {})
    trainer = {
        "image": profile.image_gpu,
        # torchrun; how many processes there are and where they meet is in the PET_* variables that the Trainer sets.
        "command": ["python", "-m", "torch.distributed.run"],
        "args": ["-m", "mdpr", STAGE, *arguments],
        "env": list(_environment(profile)),
        "numNodes": nodes,
        "numProcPerNode": max(1, gpus),
        "resourcesPerNode": {"limits": limits, "requests": dict(limits)},
    }
    metadata = {"labels": dict(profile.labels), "annotations": dict(profile.annotations)}
    pod = {"metadata": filled(metadata), "spec": _pod(profile, claims or {}, settings)}
    job = {"name": NODE, "template": {"spec": {"template": filled(pod)}}}
    patch = {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": RUNTIME},
            "activeDeadlineSeconds": placement.timeout_s,
            "trainer": trainer,
            "runtimePatches": [patch],
        },
    }


def _pod(profile: ClusterProfile, claims: Mapping[str, str], settings: tuple[str, str] | None) -> dict[str, Any]:
    """The pod of a node; a claim that serves twice is one volume."""
    volumes: list[dict[str, Any]] = [
        # A volume in memory: a pod's own shared memory of 64 MB does not hold the batches of torch's loaders.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": profile.shm_size}}
    ]
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    if settings:
        volumes.append({"name": "params", "configMap": {"name": settings[0]}})
        mounts.append({"name": "params", "mountPath": settings[1], "readOnly": True})
    known: dict[str, str] = {}
    for path, claim in {**claims, **({profile.data_path: profile.data_claim} if profile.data_claim else {})}.items():
        if claim not in known:
            known[claim] = f"claim-{len(known) + 1}"
            volumes.append({"name": known[claim], "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": known[claim], "mountPath": path})
    user = {"runAsUser": profile.run_as_user, "runAsGroup": profile.run_as_group}
    return filled(
        {
            "volumes": volumes,
            "containers": [{"name": NODE, "volumeMounts": mounts}],
            "serviceAccountName": profile.service_account,
            "imagePullSecrets": [{"name": profile.image_pull_secret}] if profile.image_pull_secret else [],
            "nodeSelector": dict(profile.node_selector),
            "tolerations": [item.model_dump(exclude_none=True) for item in profile.tolerations],
            "securityContext": {key: number for key, number in user.items() if number is not None},
        }
    )


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` without those that are empty."""
    return {name: value for name, value in fields.items() if value}


def _environment(profile: ClusterProfile) -> Iterator[dict[str, Any]]:
    """The variables of the profile, and the secrets that tune reads, by name and key."""
    yield from ({"name": name, "value": value} for name, value in profile.env.items())
    for secret, keys, optional in (
        (MLFLOW_SECRET, MLFLOW_KEYS, False),
        (MLFLOW_LOGIN_SECRET, MLFLOW_LOGIN_KEYS, True),
        (HUB_SECRET, HUB_KEYS, True),
    ):
        for key in keys:
            reference: dict[str, Any] = {"name": secret, "key": key} | ({"optional": True} if optional else {})
            yield {"name": key, "valueFrom": {"secretKeyRef": reference}}


def check_batch(tune_params: str, nodes: int, profile: ClusterProfile) -> None:
    """Raise `ConfigError` if a step has fewer images than there are processes. `tune_params`: YAML text."""
    tune, processes = parse_params(read_sections(tune_params, "params")).tune, nodes * max(1, profile.gpus_of(STAGE))
    if tune.batch_size < processes:
        raise ConfigError(
            f"tune.batch_size = {tune.batch_size} is less than the {processes} processes (nodes times GPUs per node): "
            "raise it, or take fewer nodes"
        )
