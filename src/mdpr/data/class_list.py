"""classes.json of a source, and labels as people write them: a class name or an index."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mdpr.errors import DataError
from mdpr.params import fault_line, read_json


class ClassName(BaseModel):
    """One class of a source. `disambiguation` tells two classes of the same name apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0)
    name: str = Field(min_length=1, pattern=r"\S")
    disambiguation: str | None = None


class _ClassList(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[ClassName, ...]


def read_class_list(file: Path) -> tuple[ClassName, ...]:
    """{"classes": [{"index": 0, "name": "..."}, ...]}, indices without gaps; `DataError` names the fault."""
    if not file.exists():
        raise DataError(f'{file} is missing: {{"classes": [{{"index": 0, "name": "..."}}, ...]}}')
    try:
        classes = _ClassList.model_validate(read_json(file, DataError)).classes
    except ValidationError as error:
        raise DataError(f"{file}: {fault_line(error, _ClassList)}") from None
    for position, item in enumerate(classes):
        if item.index != position:
            raise DataError(f"{file}: class {item.name!r} has index {item.index}, expected {position}")
    return classes


def shipped_class_list(name: str) -> tuple[ClassName, ...]:
    """The class names of a public data set, shipped with the package: a name a line, in order of label.

    A name that two labels share is told apart by the label.
    """
    text = (resources.files("mdpr.data") / "names" / f"{name}.txt").read_text(encoding="utf-8")
    names = text.splitlines()
    uses = Counter(names)
    return tuple(
        ClassName(index=index, name=item, disambiguation=f"label {index}" if uses[item] > 1 else None)
        for index, item in enumerate(names)
    )


class LabelReader:
    """Turns label texts of a list file into class indices.

    Without a class list the classes are the names that occur, sorted; numbers need a list that names them.
    """

    def __init__(self, classes: tuple[ClassName, ...] | None, labels: Sequence[str], file: Path) -> None:
        self.file = file
        self._accepts_indices = classes is not None
        self.classes = classes or tuple(
            ClassName(index=index, name=name) for index, name in enumerate(sorted(set(labels) - {""}))
        )
        self._by_name: dict[str, list[int]] = {}
        for item in self.classes:
            self._by_name.setdefault(item.name, []).append(item.index)

    def index(self, label: str, line: int) -> int:
        """Raises `DataError` naming the line for a label that is empty, unknown or means two classes."""
        where = f"{self.file} line {line}: label {label!r}"
        if label.isdecimal() and not self._accepts_indices:
            raise DataError(f"{where} is a number: add classes.json, which names the classes")
        matches = self._by_name.get(label, [])
        if len(matches) > 1:
            raise DataError(f"{where} is the name of classes {matches}: use the index")
        if matches:
            return matches[0]
        if label.isdecimal() and int(label) < len(self.classes):
            return int(label)
        close = difflib.get_close_matches(label, self._by_name, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "correct it or add the class to classes.json"
        raise DataError(f"{where} is not in the class list: {hint}")
