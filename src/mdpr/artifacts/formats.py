"""What every artifact is made of: JSON with a schema, safetensors with metadata, digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mdpr.errors import ArtifactError
from mdpr.params import fault_line
from mdpr.params import read_json as read_strictly

if TYPE_CHECKING:
    import numpy as np


FormatT = TypeVar("FormatT", bound=BaseModel)


class Format(BaseModel):
    """A JSON artifact. Frozen; unknown keys are errors, so that a newer file is not half understood."""

    # Its validator is built when it is first used: a stage reads three or four formats, and imports them all.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def write_json(path: Path, content: Any) -> None:
    """`content` as indented UTF-8 JSON with a final newline; NaN is refused (JSON has none)."""
    if isinstance(content, BaseModel):
        content = content.model_dump(mode="json")
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises `ArtifactError` if the file is missing or is not JSON."""
    if not path.exists():
        raise ArtifactError(f"{path} is missing: run the stage that writes it")
    return read_strictly(path, ArtifactError)


def parse(path: Path, model: type[FormatT], content: Any, error_type: type[Exception] = ArtifactError) -> FormatT:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise error_type(f"{path}: {fault_line(error, model)}") from None


def sha256(path: Path) -> str:
    """Hex digest of a file, or of a folder's relative names and contents in order."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{sha256(file_path)}\n".encode())
    return digest.hexdigest()


def class_digest(names: Sequence[str]) -> str:
    """Digest of a label set: the names in order of index. Two artifacts fit together when it is equal."""
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]


def read_tensors(
    path: Path, file_format: str, class_names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file of this format and this label set."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise ArtifactError(f"{path} is missing: run the stage that writes it")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}") from None
    if metadata.get("format") != file_format:
        raise ArtifactError(f"{path} has the format {metadata.get('format')}, expected {file_format}")
    if metadata.get("classes") != class_digest(class_names):
        raise ArtifactError(
            f"{path} was made for another label set (digest {metadata.get('classes')}) than the {len(class_names)} "
            f"classes here (digest {class_digest(class_names)}): rerun the stage that writes it"
        )
    return arrays, metadata
