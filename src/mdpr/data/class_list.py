"""The classes of a source: labels as people write them, and the names that the text encoder reads.

A label is what the source calls a class (a folder, an entry of a table); a name is the text of the prompts. They are
the same unless a style or a list of names says otherwise.
"""

from __future__ import annotations

import csv
import difflib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mdpr.artifacts import ClassName, Format
from mdpr.data.intake import read_list
from mdpr.errors import DataError, printable
from mdpr.params import fault_line, parse_json
from mdpr.params.section import is_forbidden

logger = logging.getLogger(__name__)
Style = Literal["as_is", "spaces", "words"]
NAMES_FILE, CLASS_LIST = "names.csv", "classes.json"
SYNSET_LISTS = ("LOC_synset_mapping.txt", "words.txt")  # of ImageNet: a synset and its words a line
NAME_FILES = (NAMES_FILE, CLASS_LIST, *SYNSET_LISTS)
SYNSET = re.compile(r"n\d{8}")
# What a class name holds that the text encoder does not read as words: 007.Crow, n01440764, GreatWhiteShark, class_12.
NO_WORDS = re.compile(r"_|^\d+[.\-_ ]|^n\d{8}$|[a-z][A-Z]|\d$")


class _ClassList(Format):
    classes: tuple[ClassName, ...]


def read_class_list(file: Path) -> tuple[ClassName, ...]:
    """{"classes": [{"index": 0, "name": "..."}, ...]}, indices without gaps; `DataError` names the fault."""
    content = _read_json(file)
    try:
        classes = _ClassList.model_validate(content).classes
    except ValidationError as error:
        raise DataError(f"{file}: {fault_line(error, _ClassList)}") from None
    for position, item in enumerate(classes):
        if item.index != position:
            raise DataError(f"{file}: class {item.name!r} has index {item.index}, expected {position}")
    return tuple(item.model_copy(update={"name": unicodedata.normalize("NFC", item.name)}) for item in classes)


def has_indices(file: Path) -> bool:
    """Whether classes.json is there and lists classes by index (and is not a mapping of labels to names)."""
    return os.path.lexists(file) and not _is_mapping(_read_json(file))


def _is_mapping(content: Any) -> bool:
    return isinstance(content, dict) and "classes" not in content


def _read_json(file: Path) -> Any:
    return parse_json(read_list(file, '{"classes": [{"index": 0, "name": "..."}, ...]}'), str(file), DataError)


def shipped_class_list(name: str) -> tuple[ClassName, ...]:
    """The class names of a public data set, shipped with the package: a name per line, in order of label.

    A name that two labels share gets the label as its mark.
    """
    text = (resources.files("mdpr.data") / "names" / f"{name}.txt").read_text(encoding="utf-8")
    names = text.splitlines()
    uses = Counter(names)
    return tuple(
        ClassName(index=index, name=item, disambiguation=f"label {index}" if uses[item] > 1 else None)
        for index, item in enumerate(names)
    )


def name_labels(
    labels: Sequence[str], where: Path, style: Style, names_in: Path | None = None
) -> tuple[ClassName, ...]:
    """The classes of a source whose labels are folders or entries of a table, in the order given.

    Names come from classes.json or names.csv in `names_in`, if there is one of them; those of synsets from ImageNet's
    own list there; otherwise from the labels by `style`. Labels are NFC. Raises `DataError` if two labels differ only
    in case or spaces, or get the same name.
    """
    _distinct(labels, labels, where, "classes")
    given = given_names(labels, names_in) if names_in else None
    if given is None and names_in and (listed := synset_names(labels, names_in)):
        uses = Counter(listed.values())
        return tuple(
            ClassName(index=index, name=name, label=label, disambiguation=label if uses[name] > 1 else None)
            for index, (label, name) in enumerate(listed.items())
        )
    names = [given[label] if given else styled(label, style) for label in labels]
    _distinct(names, labels, where, "class names")
    return tuple(
        ClassName(index=index, name=name, label=label if label != name else None)
        for index, (label, name) in enumerate(zip(labels, names, strict=True))
    )


def styled(label: str, style: Style) -> str:
    """A label as words. spaces: underscores become spaces; words: also 001.CamelCase becomes Camel Case."""
    if style == "as_is":
        return label
    if style == "words":
        label = re.sub(r"^\d+[.\-_ ]+(?=\D)", "", label)
        label = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    return " ".join(label.replace("_", " ").split()) or label


def given_names(labels: Sequence[str], folder: Path) -> dict[str, str] | None:
    """Label to name, from names.csv or classes.json in `folder`; None if there is neither.

    classes.json holds {"label": "name", ...} or the list that `read_class_list` reads; the latter names the labels
    itself, or numbers them (0, 1, ...), or gives its names to the labels in their order.
    Raises `DataError` for a label without a name, and for a list that could be read in two ways.
    """
    table, file = folder / NAMES_FILE, folder / CLASS_LIST
    if table.is_file() and file.is_file():
        raise DataError(f"{folder} has {table.name} and {file.name}: keep one of them")
    if table.is_file():
        names = _names_table(table)
    elif not file.is_file():
        return None
    elif _is_mapping(content := _read_json(file)):
        names = _names_mapping(content, file)
    else:
        names = _names_by_index(labels, read_class_list(file), file)
    source = table if table.is_file() else file
    for label in labels:
        if label not in names:
            raise DataError(f"{source} has no name for {printable(label)!r}: add it")
    return {label: unicodedata.normalize("NFC", names[label].strip()) or label for label in labels}


def synset_names(labels: Sequence[str], folder: Path) -> dict[str, str] | None:
    """Synset to name, from a list of ImageNet's in `folder`; None if there is none, or if a label is no synset.

    A name is the first of a synset's words, or all of them if two synsets have the same first word (maillot).
    Raises `DataError` for a synset that the list lacks.
    """
    file = next((folder / name for name in SYNSET_LISTS if (folder / name).is_file()), None)
    if file is None or not all(map(SYNSET.fullmatch, labels)):
        return None
    words: dict[str, str] = {}
    for line in read_list(file, "").splitlines():
        synset, _, names = line.replace("\t", " ").partition(" ")
        words[synset] = names.strip()
    for label in labels:
        if not words.get(label):
            raise DataError(f"{file} has no words for {label}: add a line, or write {NAMES_FILE}")
    first = {label: words[label].partition(",")[0].strip() for label in labels}
    uses = Counter(first.values())
    logger.info("%s names the classes", file)
    return {label: name if uses[name] == 1 else words[label] for label, name in first.items()}


def _names_table(file: Path) -> dict[str, str]:
    rows = list(csv.reader(read_list(file, "columns label, name").splitlines()))
    if not rows or [cell.strip() for cell in rows[0]] not in (["label", "name"], ["folder", "name"]):
        raise DataError(f"{file} must start with the line label,name")
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise DataError(f"{file} line {number}: expected 2 values, label and name")
    return {unicodedata.normalize("NFC", label.strip()): name for label, name in rows[1:]}


def _names_mapping(content: dict[str, Any], file: Path) -> dict[str, str]:
    for label, name in content.items():
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{file}: {label} must have a name, not {name!r}")
    return {unicodedata.normalize("NFC", label): name for label, name in content.items()}


def _names_by_index(labels: Sequence[str], classes: Sequence[ClassName], file: Path) -> dict[str, str]:
    by_name = {item.name: item.name for item in classes}
    by_number = {str(item.index): item.name for item in classes}
    named, numbered = set(labels) <= by_name.keys(), set(labels) <= by_number.keys()
    if named and numbered and any(by_number[label] != label for label in labels):
        raise DataError(f"{file} names classes by numbers that are not their indices: write {{label: name, ...}}")
    if named or numbered:
        return by_name if named else by_number
    if len(classes) != len(labels) or set(labels) & by_name.keys():
        raise DataError(
            f"{file} has {len(classes)} classes, and {len(labels)} labels are not their names: "
            "write {label: name, ...}"
        )
    names = dict(zip(labels, (item.name for item in classes), strict=True))
    shown = ", ".join(f"{printable(label)} is {printable(name)}" for label, name in list(names.items())[:3])
    logger.warning("%s names the classes in the order of their labels: %s", file, shown)
    return names


def check_names(classes: Sequence[ClassName], where: Path) -> None:
    """Raises `DataError` for a name with a control character; warns of names that the text encoder cannot read."""
    for item in classes:
        for text in (item.name, item.label or "", item.disambiguation or ""):
            if any(map(is_forbidden, text)):
                raise DataError(
                    f"{where}: the class name '{printable(text)}' holds a control character: rename the class"
                )
    invisible = [item.name for item in classes if any(unicodedata.category(letter) == "Cf" for letter in item.name)]
    no_words = [item.name for item in classes if NO_WORDS.search(item.name)]
    for names, fault, cure in (
        (invisible, "hold invisible characters", "rename the classes"),
        (no_words, "are not words that a text encoder knows", f"set prepare.class_name_style, or write {NAMES_FILE}"),
    ):
        if names:
            logger.warning("%d class names %s, for example '%s': %s", len(names), fault, printable(names[0]), cure)


def _distinct(names: Sequence[str], labels: Sequence[str], where: Path, what: str) -> None:
    """Raises `DataError` if two names are the same but for upper and lower case, spaces and forms of a letter.

    `labels`: what the source calls the class of each name; shown if it is another word.
    """
    seen: dict[str, str] = {}
    for name, label in zip(names, labels, strict=True):
        shown = f"{name!a}" if name == label else f"{name!a} ({label!a})"
        visible = "".join(letter for letter in name.casefold() if unicodedata.category(letter) != "Cf")
        key = " ".join(unicodedata.normalize("NFC", visible).split())
        if key in seen:
            raise DataError(
                f"{where}: the {what} {seen[key]} and {shown} differ by case, spaces, accents or "
                "invisible characters only: rename one"
            )
        seen[key] = shown


class LabelReader:
    """Turns the labels of a list file into class indices.

    Without a class list the classes are the labels that occur, sorted; numbers need a list that names them. With
    `index_first` a number is always an index, as in published lists; otherwise one that is also a name is refused.
    """

    def __init__(
        self,
        classes: tuple[ClassName, ...] | None,
        labels: Sequence[str],
        file: Path,
        style: Style = "as_is",
        *,
        index_first: bool = False,
    ) -> None:
        self.file = file
        self._has_indices = classes is not None
        self._index_first = index_first
        self.classes = classes or name_labels(sorted(set(labels) - {""}), file, style, file.parent)
        self._by_label: dict[str, list[int]] = {}
        for item in self.classes:
            for label in {item.name, item.label or item.name}:
                self._by_label.setdefault(label, []).append(item.index)

    def index(self, label: str, line: int) -> int:
        """Raises `DataError` naming the line for a label that is empty, unknown or means two classes."""
        where = f"{self.file} line {line}: label '{printable(label)}'"
        matches = self._by_label.get(label, [])
        if label.isdecimal() and not self._has_indices:
            if not matches or self.classes[matches[0]].name == label:
                raise DataError(f"{where} is a number: add classes.json, which names the classes")
        elif label.isdecimal():
            index = int(label) if len(label) < 10 and int(label) < len(self.classes) else None
            if self._index_first or not matches or matches == [index]:
                if index is None:
                    raise DataError(f"{where} is not in the class list: its indices end at {len(self.classes) - 1}")
                return index
            if index is not None:
                raise DataError(f"{where} is an index and the name of class {matches[0]}: rename that class")
        if len(matches) > 1:
            raise DataError(f"{where} is the name of classes {matches}: use the index")
        if matches:
            return matches[0]
        close = difflib.get_close_matches(label, self._by_label, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "correct it or add the class to classes.json"
        raise DataError(f"{where} is not in the class list: {hint}")
