"""Where each task of the pipeline runs, on what, for how long, and with which secrets."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kfp import dsl, kubernetes

GPU_TYPE = "nvidia.com/gpu"
GPUS = int(os.environ.get("MDPR_GPUS", "1"))  # of each task that uses any; set 0 to compile for a CPU cluster
BACKOFF = "30s"  # before the first retry; doubled for each one after it

# Kubernetes secrets in the namespace of the run (pipelines/README.md): key -> environment variable.
MLFLOW_SECRET = "mdpr-mlflow"  # noqa: S105 - the name of a secret, not a secret
MLFLOW_KEYS = {"MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI"}
MLFLOW_LOGIN_SECRET = "mdpr-mlflow-login"  # noqa: S105 - only where the server or its store asks for a login
MLFLOW_LOGIN_KEYS = {
    key: key
    for key in (
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_S3_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    )
}


@dataclass(frozen=True)
class Placement:
    """Limits of one task. `tracks`: talks to MLflow. `cached`: outputs depend on nothing but the inputs."""

    cpu: str
    memory: str
    timeout_s: int
    retries: int = 2
    gpu: bool = False
    tracks: bool = False
    cached: bool = True


PLACEMENTS = {
    "configure": Placement(cpu="1", memory="1Gi", timeout_s=600, retries=0),
    # Not cached: the images behind `root` may have changed while the path stayed the same.
    "prepare": Placement(cpu="2", memory="8Gi", timeout_s=4 * 3600, cached=False),
    "validate": Placement(cpu="2", memory="8Gi", timeout_s=3600, retries=0),
    "probe": Placement(cpu="4", memory="16Gi", timeout_s=4 * 3600, gpu=True),
    "describe": Placement(cpu="1", memory="2Gi", timeout_s=12 * 3600),
    "encode": Placement(cpu="4", memory="16Gi", timeout_s=3600, gpu=True),
    "tune": Placement(cpu="8", memory="32Gi", timeout_s=48 * 3600, retries=1, gpu=True, tracks=True),
    "evaluate": Placement(cpu="4", memory="16Gi", timeout_s=4 * 3600, gpu=True, tracks=True),
    # Not cached: what they do is change the registry, and the champion moves on between two runs.
    "register": Placement(cpu="1", memory="4Gi", timeout_s=1800, tracks=True, cached=False),
    "promote": Placement(cpu="1", memory="2Gi", timeout_s=600, tracks=True, cached=False),
}


def place(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give `task` its entry of `PLACEMENTS`."""
    placement = PLACEMENTS[task.name]
    task.set_cpu_limit(placement.cpu).set_memory_limit(placement.memory)
    task.set_caching_options(placement.cached)
    kubernetes.set_timeout(task, placement.timeout_s)
    if placement.retries:
        task.set_retry(placement.retries, backoff_duration=BACKOFF, backoff_factor=2.0)
    if placement.gpu and GPUS:
        task.set_accelerator_type(GPU_TYPE).set_accelerator_limit(GPUS)
    if placement.tracks:
        kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
        kubernetes.use_secret_as_env(task, MLFLOW_SECRET, MLFLOW_KEYS)
        kubernetes.use_secret_as_env(task, MLFLOW_LOGIN_SECRET, MLFLOW_LOGIN_KEYS, optional=True)
    return task
