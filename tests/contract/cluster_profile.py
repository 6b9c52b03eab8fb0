"""A cluster's profile with a value for every key."""

from __future__ import annotations

from typing import Any

PROFILE: dict[str, Any] = {
    "image_cpu": "registry.example.org/cpu:1",
    "image_gpu": "registry.example.org/gpu:1",
    "image_pull_policy": "Always",
    "image_pull_secret": "registry",
    "service_account": "runner",
    "pipeline_root": "s3://bucket/runs",
    "gpus": 2,
    "gpu_type": "example.org/gpu",
    "shm_size": "3Gi",
    "data_claim": "image-sets",
    "data_path": "/sets",
    "workspace_size": "50Gi",
    "workspace_access": "ReadWriteMany",
    "workspace_class": "shared",
    "env": {"https_proxy": "http://proxy:3128"},
    "labels": {"team": "vision"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "run_as_user": 12345,
    "run_as_group": 100,
    "node_selector": {"accelerator": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "cpu_node_selector": {"pool": "cpu"},
    "cpu_tolerations": [{"key": "batch", "value": "yes"}],
    "tasks": {
        "tune": {"cpu": "16", "memory": "64Gi", "timeout_s": 360000, "retries": 4, "gpus": 4},
        "encode": {"gpus": 0},
        "promote": {"cpu": "500m", "retries": 0},
    },
}
