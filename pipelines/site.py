"""What a cluster offers, and under which names: read when the pipeline is compiled.

    mdpr pipeline compile --site site.yaml --output build
    mdpr pipeline submit --site site.yaml --host ...

A file names the settings that differ from the defaults here:

    gpus: 2
    image_cpu: registry.example.org/mdpr-cpu:1.0
    image_gpu: registry.example.org/mdpr-gpu:1.0
    data_claim: image-sets
    node_selector: {accelerator: h100}
    tolerations:
      - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from components.images import IMAGE_CPU, IMAGE_GPU
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mdpr.errors import ConfigError
from mdpr.params import fault_line, read_yaml

QUANTITY = r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)$"
NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"  # of a Kubernetes object; empty: none


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Toleration(Part):
    """As in a pod: which taint of a node does not keep a task away."""

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


class Site(Part):
    """Images, GPUs, volumes and nodes."""

    image_cpu: str = Field(IMAGE_CPU, min_length=1, description="target cpu of components/Dockerfile")
    image_gpu: str = Field(IMAGE_GPU, min_length=1, description="target gpu of components/Dockerfile")
    image_pull_secret: str = Field("", pattern=NAME, description="Kubernetes secret for the images' registry")
    gpus: int = Field(1, ge=0, description="GPUs of each of probe, encode, tune and evaluate; 0: a cluster without any")
    gpu_type: str = Field("nvidia.com/gpu", min_length=1, description="resource name of a GPU")
    shm_size: str = Field("8Gi", pattern=QUANTITY, description="shared memory of those tasks, for torch's loaders")
    data_claim: str = Field("", pattern=NAME, description="PersistentVolumeClaim that holds image sets and weights")
    data_path: str = Field("/data", pattern="^/.+", description="where the claim is mounted: prepare.root lies below")
    node_selector: dict[str, str] = Field({}, description="labels of the nodes for the tasks that use a GPU")
    tolerations: tuple[Toleration, ...] = Field((), description="taints those tasks may run under")


def read_site(path: Path | None) -> Site:
    """The site that the file `path` describes, the defaults without one; raises `ConfigError`."""
    if path is None:
        return Site.model_validate({})
    try:
        return Site.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {fault_line(error, Site)}") from None
