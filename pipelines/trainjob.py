"""`mdpr pipeline trainjob`: tune on the GPUs of several nodes, as a TrainJob of Kubeflow Trainer.

    mdpr pipeline trainjob --name maple --nodes 2 --pvc work --folder maple --cluster cluster.yaml | kubectl create -f -

The first document is a ConfigMap with the parameters of tune, the second the TrainJob that reads them. Nodes share one
volume (`--pvc`, ReadWriteMany): tune reads prepared/, probe/ and features/ in `--folder` on it, and the main process
writes model/ beside them.

Source: the API trainer.kubeflow.org/v1alpha1 and the runtime torch-distributed of kubeflow/trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import click
import yaml
from pydantic import Field, ValidationError

from mdpr.errors import ConfigError
from mdpr.kubeflow.components import read_sections
from mdpr.params import Section, fault_line, parse_params
from mdpr.stages.outputs import write_whole
from mdpr.stages.stage import load_stage
from pipelines.cluster import (
    MLFLOW_KEYS,
    MLFLOW_LOGIN_KEYS,
    MLFLOW_LOGIN_SECRET,
    MLFLOW_SECRET,
    NAME,
    ClusterProfile,
    read_profile,
)
from pipelines.options import arguments, cluster_option, read_params, recipe_option, set_option, stage_texts

HEADER = "# Made by mdpr pipeline trainjob."  # of a file that --output may replace
RUNTIME = "torch-distributed"
NODE = "node"  # the runtime's job, and the container in it
MANAGER = "mdpr"  # who owns the patches of the runtime
WORK_PATH = PurePosixPath("/mnt/mdpr")  # where the shared volume is mounted
PARAMS_PATH = PurePosixPath("/etc/mdpr")
PARAMS_FILE = "params.yaml"
STAGE = "tune"


class Request(Section):
    """One TrainJob: its name, how many machines, and where on the volume they share its inputs and outputs lie."""

    # The names of its pods, which are longer, must be labels of 63 characters.
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$", description="small letters, digits and -, up to 40")
    nodes: int = Field(ge=1, description="1 or more machines")
    pvc: str = Field(pattern=NAME, min_length=1, description="name the PersistentVolumeClaim that the nodes share")
    folder: str = Field(pattern=r"^\w[-\w]*(/\w[-\w]*)*$", description="a relative path of letters, digits, - and _")


def render(request: Request, tune_params: str, profile: ClusterProfile) -> list[dict[str, Any]]:
    """ConfigMap and TrainJob. `tune_params`: YAML text of the sections that tune reads.

    Raises `ConfigError` where a step has fewer images than there are processes.
    """
    gpus = profile.gpus_of(STAGE)
    processes = max(1, gpus)
    _check_batch(tune_params, request.nodes * processes)
    settings = f"{request.name}-params"
    volumes, mounts = _volumes(settings, request.pvc, profile)
    placement = profile.placement(STAGE)
    limits = {"cpu": placement.cpu, "memory": placement.memory}
    if gpus:
        limits[profile.gpu_type] = str(gpus)
    pod: dict[str, Any] = {"volumes": volumes, "containers": [{"name": NODE, "volumeMounts": mounts}]}
    if profile.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": profile.image_pull_secret}]
    if profile.node_selector:
        pod["nodeSelector"] = dict(profile.node_selector)
    if profile.tolerations:
        pod["tolerations"] = [item.model_dump(exclude_none=True) for item in profile.tolerations]
    trainer = {
        "image": profile.image_gpu,
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
        "env": list(_environment(profile)),
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


def _volumes(settings: str, pvc: str, profile: ClusterProfile) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pod's volumes and where the container has them; a claim that serves twice is one volume."""
    claims = {"work": (pvc, str(WORK_PATH))}
    if profile.data_claim:
        claims["data"] = (profile.data_claim, profile.data_path)
    volumes: list[dict[str, Any]] = [
        # A volume in memory: a pod's own shared memory of 64 MB does not hold the batches of torch's loaders.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": profile.shm_size}},
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


def _environment(profile: ClusterProfile) -> Iterator[dict[str, Any]]:
    """The variables of the profile, and the secrets that tune reads, by name and key."""
    yield from ({"name": name, "value": value} for name, value in profile.env.items())
    for secret, keys, optional in (
        (MLFLOW_SECRET, MLFLOW_KEYS, False),
        (MLFLOW_LOGIN_SECRET, MLFLOW_LOGIN_KEYS, True),
    ):
        for key in keys:
            reference: dict[str, Any] = {"name": secret, "key": key} | ({"optional": True} if optional else {})
            yield {"name": key, "valueFrom": {"secretKeyRef": reference}}


def _patch(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The patch of the runtime: the pod of its job `NODE`."""
    job = {"name": NODE, "template": {"spec": {"template": {"spec": dict(pod)}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


def read_request(**options: Any) -> Request:
    """The options of the command, checked; raises `ConfigError` that names one."""
    try:
        return Request.model_validate(options)
    except ValidationError as error:
        key = str(error.errors(include_url=False)[0]["loc"][0])
        raise ConfigError(f"--{fault_line(error, Request)}; {Request.model_fields[key].description}") from None


@click.command("trainjob")
@click.option("--name", default="mdpr-tune", show_default=True, help="of the TrainJob")
@click.option("--nodes", type=int, default=2, show_default=True, help="machines, each with the GPUs of the profile")
@click.option("--pvc", help="PersistentVolumeClaim the nodes share (ReadWriteMany); default: the profile's data_claim")
@click.option("--folder", default="mdpr", show_default=True, help="on the volume: prepared/, probe/, features/, model/")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="file to write instead of printing")
@cluster_option
@recipe_option
@set_option
def trainjob_command(
    name: str,
    nodes: int,
    pvc: str | None,
    folder: str,
    output: Path | None,
    profile_file: Path | None,
    recipe: str,
    settings: tuple[str, ...],
) -> None:
    """Print the manifest that tunes on several nodes: a ConfigMap and a TrainJob of Kubeflow Trainer."""
    params, profile = read_params(), read_profile(profile_file)
    request = read_request(name=name, nodes=nodes, pvc=pvc or profile.data_claim, folder=folder)
    values = arguments(params, recipe, settings)
    documents = render(request, stage_texts(params, values)[STAGE], profile)
    text = yaml.safe_dump_all(documents, sort_keys=False)
    if output is None:
        click.echo(text, nl=False)
        return
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} does not exist: make it, or name another --output")
    write_whole(output, f"{HEADER}\n{text}", replaces=HEADER)
    click.echo(f"wrote {output}")
