"""Checkpoints of a training run: the file, the settings it belongs to, the stop signal and the seeds.

A checkpoint is one safetensors file, tensors and a JSON record, replaced as a whole. It carries the identity of its
run (settings, backbone, digests of the inputs); a run with another identity neither continues nor removes it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdpr.artifacts import check_digest, read_tensors, sha256, write_tensors
from mdpr.errors import ArtifactError
from mdpr.model.backbone import Backbone
from mdpr.params import TuneParams

FORMAT = "mdpr-checkpoint/1"
FILE = "state.safetensors"
WITHOUT_EFFECT = {"checkpoint_every_steps", "workers"}  # settings that do not change the learned weights
DIGEST_LENGTH = 16

Identity = Mapping[str, str | int | float | bool | None]  # flat settings and digests of inputs, by name


def run_identity(params: TuneParams, backbone: Backbone, processes: int, inputs: Sequence[Path]) -> Identity:
    """Settings of `tune` that affect the weights, backbone, device, number of processes, digests of the inputs."""
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


@contextmanager
def listen_for_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM (the notice before a node goes) sets while the block runs; then the old handler returns.

    Outside the main thread Python allows no handlers: there the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inside `set` a second one would wait for the event's own lock
        stop.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (legacy generator) and torch. Initial weights are drawn after this."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that draw from the legacy generator
    torch.manual_seed(seed)


def seed_step(seed: int, epoch: int, step: int, offset: int = 0) -> None:
    """Seed torch for one step, so that a resumed run draws the same dropout as an uninterrupted one.

    `offset` is the place of the first image in the step's batch: each micro-batch and each process draws dropout of
    its own, so splitting a batch changes what is dropped (and nothing else).
    """
    key = (offset,) if offset else ()
    state = np.random.SeedSequence((seed, epoch, step), spawn_key=key).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


@dataclass(frozen=True)
class Snapshot:
    """The state of a run: tensors by name, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


@dataclass
class Checkpoints:
    """The checkpoint in `folder` of the run that `identity` describes.

    `notes` are the caller's own values (the MLflow run, for example), saved with every snapshot.
    """

    folder: Path
    identity: Identity
    notes: dict[str, str] = field(default_factory=dict)

    def read(self) -> Snapshot | None:
        """The snapshot of an earlier run, its notes restored; None if there is none.

        Raises `ArtifactError` if it is damaged or belongs to another configuration; it is not removed.
        """
        path = self.folder / FILE
        if not path.exists():
            return None
        remedy = f"remove {self.folder} to start over"
        try:
            arrays, metadata = read_tensors(path, "tune")
            if metadata.get("format") != FORMAT:
                raise ArtifactError(f"{path} has the format {metadata.get('format')}, expected {FORMAT}")
            check_digest(path, arrays, metadata, "tune")
            saved = json.loads(metadata["state"])
        except (ArtifactError, KeyError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{path} is not a readable checkpoint ({error}): {remedy}") from None
        difference = first_difference(self.identity, saved["identity"])
        if difference:
            raise ArtifactError(
                f"{self.folder} was left by another configuration: {difference}; set it back, or {remedy}"
            )
        self.notes.update(saved["notes"])
        return Snapshot({name: torch.tensor(array) for name, array in arrays.items()}, saved["record"])

    def write(self, snapshot: Snapshot) -> None:
        """Replace the checkpoint. If the process is killed, the old file or the new one remains, whole.

        Raises `ArtifactError` if the file cannot be written (a full disk).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / FILE
        temporary = path.with_suffix(".partial")
        arrays = {name: value.detach().cpu().numpy() for name, value in snapshot.tensors.items()}
        state = {"identity": dict(self.identity), "notes": self.notes, "record": snapshot.record}
        try:
            write_tensors(temporary, arrays, {"format": FORMAT, "state": json.dumps(state)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # after a power cut the name must not exist without its content
        except OSError as error:
            raise ArtifactError(
                f"{temporary} cannot be written ({error.strerror}): make room, then run the same command"
            ) from None
        temporary.replace(path)

    def discard(self) -> None:
        """Remove the checkpoint: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def first_difference(ours: Identity, theirs: Identity) -> str:
    """The first key, sorted, that differs or is on one side only, as text with both values; empty if none."""
    for key in sorted({*ours, *theirs}):
        here, there = (repr(side[key]) if key in side else "absent" for side in (ours, theirs))
        if here != there:
            return f"{key} is {here} here, {there} there"
    return ""
