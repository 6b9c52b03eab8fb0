"""Learned weights on disk: safetensors, never pickle."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mdpr.errors import ArtifactError


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Raises `ArtifactError` where the file is missing or damaged."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: run tune first")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}") from None
