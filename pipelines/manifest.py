"""The TrainJob that tunes on several nodes, as plain data: what `kubectl create` takes.

Source: the API trainer.kubeflow.org/v1alpha1 and the runtime torch-distributed of kubeflow/trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from mdpr.errors import ConfigError
from mdpr.kubeflow.components import read_sections
from mdpr.params import parse_params
from mdpr.stages.stage import load_stage
from pipelines.placement import (
    MLFLOW_KEYS,
    MLFLOW_LOGIN_KEYS,
    MLFLOW_LOGIN_SECRET,
    MLFLOW_SECRET,
    PLACEMENTS,
)
from pipelines.site import NAME, Part, Site

RUNTIME = "torch-distributed"
NODE = "node"  # the runtime's job, and the container in it
MANAGER = "mdpr"  # who owns the patches of the runtime
WORK_PATH = PurePosixPath("/mnt/mdpr")  # where the shared volume is mounted
PARAMS_PATH = PurePosixPath("/etc/mdpr")
PARAMS_FILE = "params.yaml"
STAGE = "tune"


class Request(Part):
    """One TrainJob: its name, how many machines, and where on the volume they share its inputs and outputs lie."""

    # The names of its pods, which are longer, must be labels of 63 characters.
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$", description="small letters, digits and -, up to 40")
    nodes: int = Field(ge=1, description="1 or more machines")
    claim: str = Field(pattern=NAME, min_length=1, description="name the PersistentVolumeClaim that the nodes share")
    folder: str = Field(pattern=r"^\w[-\w]*(/\w[-\w]*)*$", description="a relative path of letters, digits, - and _")


def render(request: Request, tune_params: str, site: Site) -> list[dict[str, Any]]:
    """ConfigMap and TrainJob. `tune_params`: YAML text of the sections that tune reads.

    Raises `ConfigError` where a step has fewer images than there are processes.
    """
    processes = max(1, site.gpus)
    _check_batch(tune_params, request.nodes * processes)
    settings = f"{request.name}-params"
    volumes, mounts = _volumes(settings, request.claim, site)
    placement = PLACEMENTS[STAGE]
    limits = {"cpu": placement.cpu, "memory": placement.memory}
    if site.gpus:
        limits[site.gpu_type] = str(site.gpus)
    pod: dict[str, Any] = {"volumes": volumes, "containers": [{"name": NODE, "volumeMounts": mounts}]}
    if site.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": site.image_pull_secret}]
    if site.node_selector:
        pod["nodeSelector"] = dict(site.node_selector)
    if site.tolerations:
        pod["tolerations"] = [item.model_dump(exclude_none=True) for item in site.tolerations]
    trainer = {
        "image": site.image_gpu,
        # torchrun; how many processes there are and where they meet is in the PET_* variables that the Trainer sets.
        "command": ["python", "-m", "torch.distributed.run"],
        "args": [
            "-m",
            "mdpr",
            STAGE,
            "--params",
            str(PARAMS_PATH / "params.yaml"),
            *_ports(WORK_PATH / request.folder),
        ],
        "env": list(_environment()),
        "numNodes": request.nodes,
        "numProcPerNode": processes,
        "resourcesPerNode": {"limits": limits, "requests": dict(limits)},
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": request.name},
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "ClusterTrainingRuntime",
                "name": RUNTIME,
            },
            "activeDeadlineSeconds": placement.timeout_s,
            "trainer": trainer,
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(pod)}],
        },
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": settings},
        "data": {PARAMS_FILE: tune_params},
    }
    return [config, job]


def _check_batch(tune_params: str, processes: int) -> None:
    tune = parse_params(read_sections(tune_params, "params")).tune
    if tune.batch_size < processes:
        raise ConfigError(
            f"tune.batch_size = {tune.batch_size} is less than the {processes} processes (nodes times GPUs a node): "
            "raise it, or take fewer nodes"
        )


def _ports(folder: PurePosixPath) -> list[str]:
    return [part for port in load_stage(STAGE).ports for part in (f"--{port}", str(folder / port))]


def _volumes(settings: str, claim: str, site: Site) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pod's volumes and where the container has them; a claim that serves twice is one volume."""
    claims = {"work": (claim, str(WORK_PATH))}
    if site.data_claim:
        claims["data"] = (site.data_claim, site.data_path)
    volumes: list[dict[str, Any]] = [
        # A volume in memory: a pod's own shared memory of 64 MB does not hold the batches of torch's loaders.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": site.shm_size}},
        {"name": "params", "configMap": {"name": settings}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "params", "mountPath": str(PARAMS_PATH), "readOnly": True},
    ]
    known: dict[str, str] = {}
    for volume, (claim_name, path) in claims.items():
        if claim_name not in known:
            known[claim_name] = volume
            volumes.append({"name": volume, "persistentVolumeClaim": {"claimName": claim_name}})
        mounts.append({"name": known[claim_name], "mountPath": path})
    return volumes, mounts


def _environment() -> Iterator[dict[str, Any]]:
    """The secrets that tune reads, by name and key alone."""
    for secret, keys, optional in (
        (MLFLOW_SECRET, MLFLOW_KEYS, False),
        (MLFLOW_LOGIN_SECRET, MLFLOW_LOGIN_KEYS, True),
    ):
        for key, variable in keys.items():
            reference: dict[str, Any] = {"name": secret, "key": key} | ({"optional": True} if optional else {})
            yield {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _patch(pod: Mapping[str, Any]) -> dict[str, Any]:
    """What is changed in the runtime: the pod of its job `NODE`."""
    job = {"name": NODE, "template": {"spec": {"template": {"spec": dict(pod)}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}
