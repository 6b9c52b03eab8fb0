"""A site file that says everything a cluster may offer."""

from __future__ import annotations

from typing import Any

SITE: dict[str, Any] = {
    "image_cpu": "registry.example.org/cpu:1",
    "image_gpu": "registry.example.org/gpu:1",
    "image_pull_secret": "registry",
    "gpus": 2,
    "gpu_type": "example.org/gpu",
    "shm_size": "3Gi",
    "data_claim": "image-sets",
    "data_path": "/sets",
    "node_selector": {"accelerator": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
}
