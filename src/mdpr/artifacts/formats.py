"""The text files between stages: JSON with a schema, CSV tables with typed columns, digests."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mdpr.errors import ArtifactError
from mdpr.params import fault_line, read_text
from mdpr.params import read_json as read_strictly

if TYPE_CHECKING:
    import pandas as pd

FormatT = TypeVar("FormatT", bound=BaseModel)

# A text must stay text wherever a table is opened. A spreadsheet computes what begins with these signs, so it gets
# an apostrophe; DVC puts cells into a script of its page of plots, which `</` would end, so that gets a backslash.
FORMULA = r"('*)(?=[=+\-@\t\r])"
MARKUP = r"(\\*)(?=[/!])"


class Format(BaseModel):
    """A JSON artifact. Frozen; unknown keys are errors, so that a newer file is not half understood."""

    # Its validator is built when it is first used: a stage reads three or four formats, and imports them all.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The content of the JSON file `path`; raises `ArtifactError` if it is missing or not of this format."""
        return parse(path, cls, read_json(path))


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
    """`content` of the JSON file `path` as `model`, without conversions: text is not a number, nor is a switch."""
    try:
        return model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise error_type(f"{path}: {fault_line(error, model)}") from None


def write_csv(path: Path, table: pd.DataFrame, float_format: str | None = None) -> None:
    """`table` as CSV without its index. No text in it is a formula or ends a script; `read_csv` gives it as it was."""
    table.apply(_each_text, change=escape_cell).to_csv(path, index=False, float_format=float_format)


def read_csv(path: Path, stage: str, columns: Mapping[str, type], *, may_be_empty: bool = False) -> pd.DataFrame:
    """A CSV table that `stage` wrote; `columns` must be there: int and float are numbers, an empty cell only in float.

    Raises `ArtifactError` if it is missing or damaged, has no rows, or differs from `columns`. Other columns are read
    as they are. An empty cell is NaN; a class may be called "NA".
    """
    import pandas as pd

    if not path.exists():
        raise ArtifactError(f"{path} is missing: run {stage} first")
    texts = {name: str for name, kind in columns.items() if kind is str}
    text = read_text(path, ArtifactError)
    if text and not text.endswith("\n"):
        raise ArtifactError(f"{path} is cut short: run {stage} again")
    try:
        table = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""], dtype=texts)
    except ValueError as error:  # the base of pandas' own errors
        raise ArtifactError(f"{path} is not a readable table ({error}): run {stage} again") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise ArtifactError(f"{path} has no column {missing[0]}: run {stage} again")
    if table.empty and not may_be_empty:
        raise ArtifactError(f"{path} has no rows: run {stage} again")
    for name, kind in columns.items():
        if kind is str or table.empty:
            continue
        if table[name].dtype.kind not in ("iuf" if kind is float else "iu") or (table[name].abs() == math.inf).any():
            raise ArtifactError(f"{path}: {name} must hold numbers: run {stage} again")
    return table.apply(_each_text, change=unescape_cell)


def _each_text(column: pd.Series, change: Callable[[str], str]) -> pd.Series:
    if column.dtype.kind in "iufb":
        return column
    return column.map(lambda cell: change(cell) if isinstance(cell, str) else cell)


def escape_cell(cell: str) -> str:
    """`cell` for a CSV table: no formula for a spreadsheet, no end of a script."""
    return re.sub(rf"^{FORMULA}", r"'\1", re.sub(rf"(?<=<){MARKUP}", r"\\\1", cell))


def unescape_cell(cell: str) -> str:
    """The text that `escape_cell` was given."""
    return re.sub(rf"^'{FORMULA}", r"\1", re.sub(rf"(?<=<)\\{MARKUP}", r"\1", cell))


def sha256(path: Path) -> str:
    """Hex digest of a file, or of a folder's relative names and contents in order.

    Raises `ArtifactError` if there is neither.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise ArtifactError(f"{path} is missing: run the stage that writes it")
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{sha256(file_path)}\n".encode())
    return digest.hexdigest()


def class_digest(names: Sequence[str]) -> str:
    """Digest of a label set: the names in order of index. Two artifacts fit together when it is equal."""
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
