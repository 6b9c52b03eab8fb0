"""What a killed run needs to go on, on disk: one safetensors file, tensors and a JSON record, replaced as a whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mdpr.errors import ArtifactError

FORMAT = "mdpr-checkpoint/1"
FILE = "state.safetensors"

Identity = Mapping[str, str | int | float | bool | None]  # flat settings and digests of inputs, by name


@dataclass(frozen=True)
class Snapshot:
    """A moment of training: its tensors by name, and all else as JSON values."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


@dataclass
class Checkpoints:
    """The checkpoint in `folder`, which belongs to the run that `identity` describes.

    `notes` are values of the caller's own (the MLflow run, say) that travel with every snapshot.
    """

    folder: Path
    identity: Identity
    notes: dict[str, str] = field(default_factory=dict)

    def read(self) -> Snapshot | None:
        """What an earlier run left, its notes taken over; None where there is nothing.

        Raises `ArtifactError` where it is damaged, or where another configuration left it: that is neither continued
        nor thrown away.
        """
        path = self.folder / FILE
        if not path.exists():
            return None
        away = f"remove {self.folder} to start over"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if metadata.get("format") != FORMAT:
                raise ArtifactError(f"{path} has the format {metadata.get('format')}, expected {FORMAT}: {away}")
            saved = json.loads(metadata["state"])
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{path} is not a readable checkpoint ({error}): {away}") from None
        difference = first_difference(self.identity, saved["identity"])
        if difference:
            raise ArtifactError(
                f"{self.folder} was left by another configuration: {difference}; set it back, or {away}"
            )
        self.notes.update(saved["notes"])
        return Snapshot(tensors, saved["record"])

    def write(self, snapshot: Snapshot) -> None:
        """Replace the checkpoint. Killed at any moment, the old one or the new one is there, whole.

        Raises `ArtifactError` where the file cannot be written (a full disk).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / FILE
        temporary = path.with_suffix(".partial")
        tensors = {name: value.detach().cpu().contiguous() for name, value in snapshot.tensors.items()}
        state = {"identity": dict(self.identity), "notes": self.notes, "record": snapshot.record}
        try:
            save_file(tensors, temporary, {"format": FORMAT, "state": json.dumps(state)})
        except SafetensorError as error:
            raise ArtifactError(
                f"{temporary} cannot be written ({error}): make room, then run the same command"
            ) from None
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a node that loses power must not keep the name without the content
        temporary.replace(path)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def first_difference(ours: Identity, theirs: Identity) -> str:
    """The first key, in order, with another value or on one side alone, as text with both values; empty if none."""
    for key in sorted({*ours, *theirs}):
        here, there = (repr(side[key]) if key in side else "absent" for side in (ours, theirs))
        if here != there:
            return f"{key} is {here} here, {there} there"
    return ""
