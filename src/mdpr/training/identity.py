"""What a training run is made of: the settings and inputs by which a checkpoint knows its own run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mdpr.artifacts import sha256
from mdpr.config import TuneParams
from mdpr.errors import ArtifactError
from mdpr.model.backbone import Backbone
from mdpr.training.checkpoint import Identity

WITHOUT_EFFECT = {"checkpoint_every_steps", "workers"}  # the same weights, whatever their values
DIGEST_LENGTH = 16


def run_identity(params: TuneParams, backbone: Backbone, processes: int, inputs: Sequence[Path]) -> Identity:
    """Every setting of `tune` that has an effect, the backbone, the number of processes, and digests of all inputs."""
    settings = params.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    loss = settings.pop("loss")
    return {
        **{f"tune.{key}": value for key, value in settings.items()},
        **{f"tune.loss.{key}": value for key, value in loss.items()},
        "backbone": backbone.fingerprint,
        "device": backbone.device.type,
        "processes": processes,
        **{f"sha256 of {path.name}": sha256(path)[:DIGEST_LENGTH] for path in inputs},
    }


def check_fit(backbone: Backbone, fingerprints: Mapping[Path, str]) -> None:
    """Raises `ArtifactError` for the first input (path -> fingerprint) that another backbone made."""
    for path, fingerprint in fingerprints.items():
        if fingerprint != backbone.fingerprint:
            raise ArtifactError(
                f"{path} was made with {fingerprint}, the backbone is {backbone.fingerprint}: rerun the stage that "
                "writes it"
            )
