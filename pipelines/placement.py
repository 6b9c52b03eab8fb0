"""Where each task of the pipeline runs, on what, for how long, and with which secrets."""

from __future__ import annotations

from dataclasses import dataclass

from kfp import dsl, kubernetes

from pipelines.site import Site

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
LLM_SECRET = "mdpr-llm"  # noqa: S105 - only where describe asks a chat model that wants a key
LLM_KEYS = {key: key for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY")}

DATA_SECRET = "mdpr-data"  # noqa: S105 - only where the images lie in a private repository or its DVC remote wants keys
DATA_KEYS = {
    key: key
    for key in (
        "MDPR_GIT_USERNAME",
        "MDPR_GIT_PASSWORD",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ENDPOINT_URL",
    )
}


@dataclass(frozen=True)
class Placement:
    """Limits of one task.

    `tracks`: talks to MLflow. `asks`: may talk to a chat model. `mounts`: reads files that lie outside the images.
    `pulls`: may fetch a data set from a repository.
    `spreads`: one process a GPU, under torchrun. `cached`: outputs depend on nothing but the inputs.
    """

    cpu: str
    memory: str
    timeout_s: int
    retries: int = 2
    gpu: bool = False
    tracks: bool = False
    asks: bool = False
    mounts: bool = False
    pulls: bool = False
    spreads: bool = False
    cached: bool = True


PLACEMENTS = {
    # Not cached: every run's folder holds its own settings (mdpr pipeline fetch).
    "configure": Placement(cpu="1", memory="1Gi", timeout_s=600, retries=0, cached=False),
    # Not cached: the images behind `root` may have changed while the path stayed the same.
    "prepare": Placement(cpu="2", memory="8Gi", timeout_s=4 * 3600, mounts=True, pulls=True, cached=False),
    "validate": Placement(cpu="2", memory="8Gi", timeout_s=3600, retries=0),
    "probe": Placement(cpu="4", memory="16Gi", timeout_s=4 * 3600, gpu=True, mounts=True),
    "shard": Placement(cpu="1", memory="1Gi", timeout_s=600, retries=0),
    "describe": Placement(cpu="1", memory="2Gi", timeout_s=12 * 3600, asks=True, mounts=True),
    "merge": Placement(cpu="1", memory="2Gi", timeout_s=1800, retries=0),
    "encode": Placement(cpu="4", memory="16Gi", timeout_s=3600, gpu=True, mounts=True),
    "vary": Placement(cpu="1", memory="1Gi", timeout_s=600, retries=0),
    "tune": Placement(
        cpu="8", memory="32Gi", timeout_s=48 * 3600, retries=1, gpu=True, mounts=True, spreads=True, tracks=True
    ),
    "select": Placement(cpu="1", memory="2Gi", timeout_s=1800),
    "evaluate": Placement(cpu="4", memory="16Gi", timeout_s=4 * 3600, gpu=True, mounts=True, tracks=True),
    # Not cached: what they do is change the registry, and the champion moves on between two runs.
    "register": Placement(cpu="1", memory="4Gi", timeout_s=1800, tracks=True, cached=False),
    "promote": Placement(cpu="1", memory="2Gi", timeout_s=600, tracks=True, cached=False),
    "close": Placement(cpu="1", memory="2Gi", timeout_s=600, tracks=True, cached=False),
}


def place(task: dsl.PipelineTask, site: Site) -> dsl.PipelineTask:
    """Give `task` its entry of `PLACEMENTS`, as `site` offers it."""
    placement = PLACEMENTS[task.name]
    task.set_container_image(site.image_gpu if placement.gpu else site.image_cpu)
    task.set_cpu_limit(placement.cpu).set_memory_limit(placement.memory)
    task.set_caching_options(placement.cached)
    kubernetes.set_timeout(task, placement.timeout_s)
    if placement.retries:
        task.set_retry(placement.retries, backoff_duration=BACKOFF, backoff_factor=2.0)
    if site.image_pull_secret:
        kubernetes.set_image_pull_secrets(task, [site.image_pull_secret])
    if placement.mounts and site.data_claim:
        kubernetes.mount_pvc(task, site.data_claim, site.data_path)
    if placement.gpu:
        _use_gpu(task, site)
    if placement.spreads and site.gpus > 1:
        task.set_env_variable("MDPR_PROCESSES", str(site.gpus))
    if placement.tracks:
        kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
        kubernetes.use_secret_as_env(task, MLFLOW_SECRET, MLFLOW_KEYS)
        kubernetes.use_secret_as_env(task, MLFLOW_LOGIN_SECRET, MLFLOW_LOGIN_KEYS, optional=True)
    if placement.asks:
        kubernetes.use_secret_as_env(task, LLM_SECRET, LLM_KEYS, optional=True)
    if placement.pulls:
        kubernetes.use_secret_as_env(task, DATA_SECRET, DATA_KEYS, optional=True)
    return task


def _use_gpu(task: dsl.PipelineTask, site: Site) -> None:
    # A volume in memory: a pod's own shared memory of 64 MB does not hold the batches of torch's loaders.
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=site.shm_size)  # noqa: S108
    if site.gpus:
        task.set_accelerator_type(site.gpu_type).set_accelerator_limit(site.gpus)
    for label, value in site.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in site.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
