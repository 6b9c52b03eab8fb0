"""A cluster's profile, and how each task of a pipeline is placed on it: image, limits, volumes, secrets, retries.

    mdpr pipeline compile --cluster cluster.yaml --output build
    mdpr pipeline submit --cluster cluster.yaml --host ...

A profile names the keys that differ from the defaults of `ClusterProfile`:

    image_cpu: registry.example.org/mdpr-cpu:1.0
    image_gpu: registry.example.org/mdpr-gpu:1.0
    data_claim: image-sets
    env: {https_proxy: http://proxy:3128}
    node_selector: {accelerator: h100}
    tolerations:
      - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
    tasks:
      tune: {gpus: 2, memory: 64Gi, timeout_s: 360000}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from components.images import IMAGE_CPU, IMAGE_GPU
from kfp import dsl, kubernetes
from pydantic import Field, ValidationError, model_validator

from mdpr.errors import ConfigError
from mdpr.kubeflow.components import HIDDEN
from mdpr.params import Section, fault_line, read_yaml
from mdpr.stages.stage import STAGES

QUANTITY = r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)$"
CPU = r"^\d+(\.\d+)?$|^\d+m$"
NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"  # of a Kubernetes object; empty: none
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"

SEVERAL_NODES = "trainjob"  # the task in the place of tune that trains on several nodes
BACKOFF_S = 30  # pause before the first retry, doubled for each one after it
# A task may wait for a node before each attempt. Argo counts the wait, and ends every retry when the time is up.
WAITING_S = 24 * 3600

# Kubernetes secrets in the namespace of the run (docs/how-to/cluster.md), and the keys in them.
MLFLOW_SECRET = "mdpr-mlflow"  # noqa: S105 - the name of a secret, not a secret
MLFLOW_KEYS = ("MLFLOW_TRACKING_URI",)
MLFLOW_LOGIN_SECRET = "mdpr-mlflow-login"  # noqa: S105 - only if the server or its store needs a login
MLFLOW_STORE_KEYS = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
MLFLOW_LOGIN_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", *MLFLOW_STORE_KEYS)
LLM_SECRET = "mdpr-llm"  # noqa: S105 - only if describe uses a chat model that needs a key
LLM_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY")
DATA_SECRET = "mdpr-data"  # noqa: S105 - only if the images are in a private repository or its DVC remote needs keys
DATA_KEYS = (
    "MDPR_GIT_USERNAME",
    "MDPR_GIT_PASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL",
)
HUB_SECRET = "mdpr-hub"  # noqa: S105 - only for gated models and data sets of the Hugging Face Hub
HUB_KEYS = ("HF_TOKEN",)


@dataclass(frozen=True)
class Placement:
    """Limits of one task, and what it needs beside them.

    `tracks`: talks to MLflow. `chats`: may talk to a chat model. `downloads`: may fetch a data set or weights.
    `spreads`: one process per GPU, under torchrun. `cached`: outputs depend on nothing but the inputs.
    """

    cpu: str
    memory: str
    timeout_s: int
    retries: int = 2
    gpu: bool = False
    tracks: bool = False
    chats: bool = False
    downloads: bool = False
    spreads: bool = False
    cached: bool = True

    @property
    def retry_window_s(self) -> int:
        """Seconds from the start of the first attempt in which the last one can still run to its own time-out.

        Argo reads the limit of the back-off so: it neither starts a retry after it, nor lets one run beyond it.
        """
        pauses_s = BACKOFF_S * (2**self.retries - 1)
        return (self.retries + 1) * (self.timeout_s + WAITING_S) + pauses_s


PLACEMENTS = {
    # Not cached: every run's folder holds its own settings (mdpr pipeline fetch).
    "configure": Placement(cpu="1", memory="1Gi", timeout_s=600, retries=0, cached=False),
    # Not cached: the images behind `root` may have changed while the path stayed the same.
    "prepare": Placement(cpu="2", memory="8Gi", timeout_s=4 * 3600, downloads=True, cached=False),
    "validate": Placement(cpu="2", memory="8Gi", timeout_s=3600, retries=0),
    # Not cached: every check is seen to have been made.
    "require": Placement(cpu="1", memory="1Gi", timeout_s=600, retries=0, cached=False),
    "probe": Placement(cpu="4", memory="16Gi", timeout_s=4 * 3600, gpu=True, downloads=True),
    "shard": Placement(cpu="1", memory="1Gi", timeout_s=600, retries=0),
    "describe": Placement(cpu="1", memory="2Gi", timeout_s=12 * 3600, chats=True),
    "merge": Placement(cpu="1", memory="2Gi", timeout_s=1800, retries=0),
    "encode": Placement(cpu="4", memory="16Gi", timeout_s=3600, gpu=True, downloads=True),
    "vary": Placement(cpu="1", memory="1Gi", timeout_s=600, retries=0),
    "tune": Placement(
        cpu="8",
        memory="32Gi",
        timeout_s=48 * 3600,
        gpu=True,
        downloads=True,
        spreads=True,
        tracks=True,
    ),
    # It only waits for the nodes, which have the limits of tune; see `ClusterProfile.placement`.
    "trainjob": Placement(cpu="1", memory="2Gi", timeout_s=48 * 3600 + WAITING_S),
    "select": Placement(cpu="1", memory="2Gi", timeout_s=1800),
    "evaluate": Placement(cpu="4", memory="16Gi", timeout_s=4 * 3600, gpu=True, downloads=True, tracks=True),
    # Not cached: the log grows behind the same path.
    "monitor": Placement(cpu="2", memory="4Gi", timeout_s=3600, tracks=True, cached=False),
    # Not cached: they change the registry, and the champion moves on between two runs.
    "register": Placement(cpu="1", memory="4Gi", timeout_s=1800, tracks=True, cached=False),
    # Without a GPU: it scores the champion only if the test set has changed since.
    "promote": Placement(cpu="4", memory="16Gi", timeout_s=4 * 3600, downloads=True, tracks=True, cached=False),
    "close": Placement(cpu="1", memory="2Gi", timeout_s=600, tracks=True, cached=False),
}


class Toleration(Section):
    """As in a pod: a taint of a node that a task accepts."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _kubernetes_takes_it(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key")
        return self


class TaskLimits(Section):
    """Limits of one task that differ; None: as in `PLACEMENTS`, GPUs as in the profile."""

    cpu: str | None = Field(None, pattern=CPU, description="processors, 2 or 500m")
    memory: str | None = Field(None, pattern=QUANTITY, description="memory, 16Gi")
    timeout_s: int | None = Field(None, ge=60, le=90 * 24 * 3600, description="seconds that an attempt may take")
    retries: int | None = Field(None, ge=0, le=20, description="attempts after the first")
    gpus: int | None = Field(None, ge=0, le=1024, description="GPUs, for a task that uses any")
    nodes: int | None = Field(None, ge=1, le=1024, description="machines, for tune; above 1 it runs as a TrainJob")


class ClusterProfile(Section):
    """Images, limits, volumes and nodes of a cluster."""

    image_cpu: str = Field(IMAGE_CPU, min_length=1, description="target cpu of components/Dockerfile")
    image_gpu: str = Field(IMAGE_GPU, min_length=1, description="target gpu of components/Dockerfile")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="empty: Always for the tag latest, otherwise IfNotPresent"
    )
    image_pull_secret: str = Field("", pattern=NAME, description="Kubernetes secret for the images' registry")
    service_account: str = Field("", pattern=NAME, description="account of the pods; empty: the cluster's default")
    pipeline_root: str = Field("", description="address that runs write below; empty: the cluster's own")
    mlflow: Literal["secret", "plugin"] = Field(
        "secret",
        description="where tasks have the address of MLflow from: the secret mdpr-mlflow, or Kubeflow's own plugin "
        "(injectUserEnvVars: true), under whose runs those of mdpr are nested then",
    )
    gpus: int = Field(1, ge=0, le=1024, description="GPUs of each task that uses any; 0: a cluster without GPUs")
    gpu_type: str = Field("nvidia.com/gpu", min_length=1, description="resource name of a GPU")
    shm_size: str = Field("8Gi", pattern=QUANTITY, description="shared memory of those tasks, for torch's loaders")
    data_claim: str = Field("", pattern=NAME, description="PersistentVolumeClaim that holds image sets and weights")
    data_path: str = Field("/data", pattern="^/.+", description="where the stages see the claim; prepare.root is below")
    workspace_size: str = Field(
        "20Gi",
        pattern=rf"{QUANTITY}|^$",
        description="size of the volume that a run keeps checkpoints, answers and unsent results on; empty: no volume",
    )
    workspace_access: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = Field(
        "ReadWriteOnce", description="ReadWriteMany lets the models of a sweep train on several nodes at once"
    )
    workspace_class: str = Field("", pattern=NAME, description="its storage class; empty: the cluster's default")
    env: Mapping[Annotated[str, Field(pattern=VARIABLE)], str] = Field(
        {}, description="environment variables of every task, such as https_proxy; no secrets"
    )
    labels: Mapping[str, str] = Field({}, description="labels of every pod")
    annotations: Mapping[str, str] = Field({}, description="annotations of every pod")
    run_as_user: int | None = Field(None, ge=0, le=2**31 - 1, description="user id of every pod; empty: the image's")
    run_as_group: int | None = Field(None, ge=0, le=2**31 - 1, description="group id of every pod; empty: the image's")
    node_selector: Mapping[str, str] = Field({}, description="labels of the nodes for the tasks that use a GPU")
    tolerations: tuple[Toleration, ...] = Field((), description="taints those tasks may run under")
    cpu_node_selector: Mapping[str, str] = Field({}, description="labels of the nodes for all other tasks")
    cpu_tolerations: tuple[Toleration, ...] = Field((), description="taints those may run under")
    tasks: Mapping[str, TaskLimits] = Field({}, description="limits of single tasks, by name")

    @model_validator(mode="after")
    def _tasks_exist(self) -> ClusterProfile:
        if unknown := sorted(self.tasks.keys() - PLACEMENTS.keys()):
            raise ValueError(f"tasks: there is no task {unknown[0]}: there are {', '.join(PLACEMENTS)}")
        if idle := sorted(name for name, task in self.tasks.items() if task.gpus and not PLACEMENTS[name].gpu):
            raise ValueError(f"tasks: {idle[0]} does not use a GPU: leave gpus out")
        if single := sorted(name for name, task in self.tasks.items() if task.nodes and not PLACEMENTS[name].spreads):
            raise ValueError(f"tasks: {single[0]} runs on one machine: leave nodes out")
        if self.nodes > 1 and not (self.workspace_size and self.workspace_access == "ReadWriteMany"):
            raise ValueError(
                f"tasks.tune.nodes = {self.nodes}: the nodes share the volume of the run, which needs workspace_size, "
                "workspace_access: ReadWriteMany, and a workspace_class that has it"
            )
        if self.nodes > 1 and self.mlflow == "plugin":
            raise ValueError("tasks.tune.nodes: the variables of MLflow's plugin do not reach them; set mlflow: secret")
        return self

    @property
    def nodes(self) -> int:
        """Number of machines that tune runs on."""
        return self.tasks.get("tune", TaskLimits()).nodes or 1

    def placement(self, task: str) -> Placement:
        """The entry of `PLACEMENTS` with the limits that the profile has for this task."""
        usual, own = PLACEMENTS[task], self.tasks.get(task, TaskLimits())
        if task == SEVERAL_NODES:
            tune = self.placement("tune")
            usual = replace(usual, timeout_s=tune.timeout_s + WAITING_S, retries=tune.retries)
        return replace(usual, **own.model_dump(exclude_none=True, exclude={"gpus", "nodes"}))

    def gpus_of(self, task: str) -> int:
        """Number of GPUs of a task."""
        own = self.tasks.get(task, TaskLimits()).gpus
        return (self.gpus if own is None else own) if PLACEMENTS[task].gpu else 0

    def workspace(self) -> dsl.WorkspaceConfig | None:
        """The volume of each run, which outlives its pods; None if there is none."""
        if not self.workspace_size:
            return None
        claim = {"accessModes": [self.workspace_access]}
        if self.workspace_class:
            claim["storageClassName"] = self.workspace_class  # type: ignore[assignment]
        return dsl.WorkspaceConfig(
            size=self.workspace_size, kubernetes=dsl.KubernetesWorkspaceConfig(pvcSpecPatch=claim)
        )


def read_profile(path: Path | None) -> ClusterProfile:
    """The profile in the file `path`, the defaults without one; raises `ConfigError`."""
    try:
        return ClusterProfile.model_validate({} if path is None else read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {fault_line(error, ClusterProfile)}") from None


def place(task: dsl.PipelineTask, profile: ClusterProfile) -> dsl.PipelineTask:
    """Give `task` its image, limits, volumes, secrets and retries on the cluster of `profile`."""
    name = task.component_spec.name  # that of the second task of a component has a number
    placement, gpus = profile.placement(name), profile.gpus_of(name)
    task.set_container_image(profile.image_gpu if placement.gpu else profile.image_cpu)
    task.set_cpu_limit(placement.cpu).set_memory_limit(placement.memory)
    task.set_caching_options(placement.cached)
    kubernetes.set_timeout(task, placement.timeout_s)
    if placement.retries:
        task.set_retry(
            placement.retries,
            backoff_duration=f"{BACKOFF_S}s",
            backoff_factor=2.0,
            backoff_max_duration=f"{placement.retry_window_s}s",
        )
    if name in (*STAGES, "monitor") and profile.data_claim:
        kubernetes.mount_pvc(task, profile.data_claim, profile.data_path)
    _set_pod(task, profile)
    if placement.gpu:
        _use_gpu(task, profile, gpus)
    else:
        _choose_nodes(task, profile.cpu_node_selector, profile.cpu_tolerations)
    if placement.spreads and gpus > 1:
        task.set_env_variable("MDPR_PROCESSES", str(gpus))
    if task.name == SEVERAL_NODES or (task.name == "close" and profile.nodes > 1):
        kubernetes.use_field_path_as_env(task, "KFP_NAMESPACE", "metadata.namespace")
    if placement.tracks or task.name == SEVERAL_NODES:
        kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
    if placement.tracks:
        if profile.mlflow == "secret":
            kubernetes.use_secret_as_env(task, MLFLOW_SECRET, variables(MLFLOW_KEYS))
        # A variable that the plugin sets as well would make the pod invalid.
        keys = MLFLOW_LOGIN_KEYS if profile.mlflow == "secret" else MLFLOW_STORE_KEYS
        kubernetes.use_secret_as_env(task, MLFLOW_LOGIN_SECRET, variables(keys), optional=True)
    if placement.chats:
        kubernetes.use_secret_as_env(task, LLM_SECRET, variables(LLM_KEYS), optional=True)
    if placement.downloads:
        kubernetes.use_secret_as_env(task, HUB_SECRET, variables(HUB_KEYS), optional=True)
    if name == "prepare":
        kubernetes.use_secret_as_env(task, DATA_SECRET, variables(DATA_KEYS), optional=True)
    return task


def variables(keys: tuple[str, ...]) -> dict[str, str]:
    """Key of a secret -> environment variable. Kubeflow's launcher, which runs in the same container, reads AWS_* for
    its own transfers: these get a prefix that the component takes off in its own process."""
    return {key: f"{HIDDEN}{key}" if key.startswith("AWS_") else key for key in keys}


def _set_pod(task: dsl.PipelineTask, profile: ClusterProfile) -> None:
    for name, value in profile.env.items():
        task.set_env_variable(name, value)
    for name, value in profile.labels.items():
        kubernetes.add_pod_label(task, name, value)
    for name, value in profile.annotations.items():
        kubernetes.add_pod_annotation(task, name, value)
    if profile.image_pull_policy:
        kubernetes.set_image_pull_policy(task, profile.image_pull_policy)
    if profile.image_pull_secret:
        kubernetes.set_image_pull_secrets(task, [profile.image_pull_secret])
    if profile.run_as_user is not None or profile.run_as_group is not None:
        kubernetes.set_security_context(task, run_as_user=profile.run_as_user, run_as_group=profile.run_as_group)


def _use_gpu(task: dsl.PipelineTask, profile: ClusterProfile, gpus: int) -> None:
    # A volume in memory: a pod's own shared memory of 64 MB does not hold the batches of torch's loaders.
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=profile.shm_size)  # noqa: S108
    if gpus:
        task.set_accelerator_type(profile.gpu_type).set_accelerator_limit(gpus)
    _choose_nodes(task, profile.node_selector, profile.tolerations)


def _choose_nodes(task: dsl.PipelineTask, labels: Mapping[str, str], tolerations: tuple[Toleration, ...]) -> None:
    for label, value in labels.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
