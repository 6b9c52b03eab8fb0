"""Autocast and loss scaling by name. Learned weights stay float32; logits, cosines and losses are computed in it."""

from __future__ import annotations

import torch

from mdpr.errors import ConfigError

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # fp32 needs none


class Precision:
    """How a step computes: `autocast()` around the model, `scaler` around the gradients (fp16 alone uses it)."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device_type = device.type
        # float16 has no gradients below 6e-8; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, HALF_TYPES.get(self.name), enabled=self.name in HALF_TYPES)


def check_precision(name: str, device: torch.device) -> None:
    """Raises `ConfigError` for fp16 without a GPU: torch has its operations on a CPU, many times slower than fp32."""
    if name == "fp16" and device.type != "cuda":
        raise ConfigError(f"tune.precision = fp16 needs a CUDA GPU, backbone.device is {device.type}: use bf16 or fp32")
