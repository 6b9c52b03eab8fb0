"""Sources that are a table: Parquet in the Hugging Face image layout, CSV, and the published lists of benchmarks."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdpr.artifacts import SPLITS, ClassName
from mdpr.data.class_list import CLASS_LIST, LabelReader, has_indices, read_class_list, shipped_class_list
from mdpr.data.intake import read_list
from mdpr.data.sources.source import FileSplit, ParquetSplit, Place, Source
from mdpr.errors import DataError, printable
from mdpr.images.decoding import utf8_name
from mdpr.params import parse_json

COLUMNS = ("path", "label")
SPLIT_COLUMN = "split"


def parquet_source(place: Place) -> Source:
    """pool.parquet, test.parquet and classes.json; val.parquet if there is one."""
    root = place.root
    classes = read_class_list(root / CLASS_LIST)
    val, test = root / "val.parquet", root / "test.parquet"
    for file in (root / "pool.parquet", *([test] if place.reads_test else [])):
        if not file.is_file():
            raise DataError(f"{file} is missing: prepare.root must hold pool.parquet and test.parquet")
    return Source(
        classes=classes,
        pool=ParquetSplit.open(root / "pool.parquet", len(classes), place.log),
        val=ParquetSplit.open(val, len(classes), place.log) if val.is_file() else None,
        test=ParquetSplit.open(test, len(classes), place.log) if place.reads_test else None,
    )


def csv_source(place: Place) -> Source:
    """images.csv with the columns path, label and, if there are splits, split.

    A label is a class name, or an index into classes.json beside it. Without that file the classes are the
    labels that occur, sorted; names.csv (or classes.json as {label: name}) gives them other names.
    """
    file, class_list = place.root / "images.csv", place.root / CLASS_LIST
    rows = list(_csv_rows(file))
    classes = read_class_list(class_list) if has_indices(class_list) else None
    reader = LabelReader(classes, [row.label for row in rows], file, place.params.class_name_style)
    splits = {split: listed_split(place, rows, split, reader) for split in SPLITS}
    has_splits = any(row.split is not None for row in rows)
    return Source(
        classes=reader.classes,
        pool=splits["train"],
        val=splits["val"] if len(splits["val"].files) else None,
        test=splits["test"] if has_splits else None,
    )


class ListedImage(NamedTuple):
    """A line of a list: `split` is None if the list has none."""

    line: int
    path: str
    label: str
    split: str | None


def listed_split(place: Place, rows: Sequence[ListedImage], split: str, reader: LabelReader) -> FileSplit:
    """The rows of a split (train has those without one); rows that cannot be used go to `place.log`."""
    chosen: list[ListedImage] = []
    labels: list[int] = []
    for row in rows:
        if (row.split or "train") != split:
            continue
        try:
            inside(row.path, place.image_root, f"{reader.file} line {row.line}")
            labels.append(reader.index(row.label, row.line))
        except DataError as error:
            place.log.bad(error)
            continue
        chosen.append(row)
    return FileSplit(
        place.image_root,
        [row.path for row in chosen],
        np.array(labels, np.int64),
        [f"{reader.file.name} line {row.line}" for row in chosen],
        place.params.follow_links,
    )


def inside(path: str, root: Path, where: str) -> None:
    """Raises `DataError` for an empty path, one that no file can have, and one that leads out of `root`."""
    if not path:
        raise DataError(f"{where}: the path is empty")
    utf8_name(path, where)
    steps = os.path.normpath(path).split(os.sep)
    if os.path.isabs(path) or steps[0] == os.pardir:
        raise DataError(f"{where}: path '{printable(path)}' leads out of {root}: write it from there")


def _csv_rows(file: Path) -> Iterator[ListedImage]:
    text = read_list(file, "list the images in it, columns path, label, split")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        _check_columns(columns, file)
        reader.fieldnames = columns
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{file} line {reader.line_num}: expected {len(columns)} values, {', '.join(columns)}")
            values = {column: value.strip() for column, value in row.items()}
            split = values.get(SPLIT_COLUMN)
            if split is not None and split not in SPLITS:
                raise DataError(f"{file} line {reader.line_num}: split {split!r} must be train, val or test")
            label = unicodedata.normalize("NFC", values["label"])
            yield ListedImage(reader.line_num, values["path"], label, split)
    except csv.Error as error:
        raise DataError(f"{file} after line {reader.line_num}: {error}") from None


def _check_columns(columns: Sequence[str], file: Path) -> None:
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            raise DataError(f"{file} has {name} between its columns: write commas")
    for column in columns:
        if column not in (*COLUMNS, SPLIT_COLUMN):
            raise DataError(f"{file} has an unknown column {column!r}: it must have path, label and split")
    for column in COLUMNS:
        if columns.count(column) != 1:
            raise DataError(f"{file} must have one column {column!r}; it has {', '.join(columns) or 'none'}")
    if columns.count(SPLIT_COLUMN) > 1:
        raise DataError(f"{file} has two columns {SPLIT_COLUMN!r}: keep one")


def imagenet_lt_source(place: Place) -> Source:
    """ImageNet_LT_train.txt, _val.txt and _test.txt (Liu et al., CVPR 2019), and ImageNet's train/ and val/."""
    names = ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt")
    return _lists_source(place, *names, lambda: shipped_class_list("imagenet"))


def places_lt_source(place: Place) -> Source:
    """Places_LT_train.txt, _val.txt and _test.txt (Liu et al., CVPR 2019), and the images of Places365."""
    names = ("Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt")
    return _lists_source(place, *names, lambda: shipped_class_list("places365"))


def inat2018_source(place: Place) -> Source:
    """iNaturalist18_train.txt and _val.txt (its val is the test set, as usual), and categories.json of the set."""
    names = ("iNaturalist18_train.txt", None, "iNaturalist18_val.txt")
    return _lists_source(place, *names, lambda: _categories(place.root))


def _lists_source(
    place: Place, train: str, val: str | None, test: str, class_list: Callable[[], tuple[ClassName, ...]]
) -> Source:
    """The list files of a benchmark as they are published; `class_list` holds if there is no classes.json."""
    own = place.root / CLASS_LIST
    classes = read_class_list(own) if own.is_file() else class_list()
    return Source(
        classes=classes,
        pool=_listed(place, train, classes),
        val=_listed(place, val, classes) if val else None,
        test=_listed(place, test, classes),
    )


def _listed(place: Place, name: str, classes: tuple[ClassName, ...]) -> FileSplit:
    file = place.root / name
    rows = list(_list_rows(file))
    return listed_split(place, rows, "train", LabelReader(classes, [], file, index_first=True))


def _list_rows(file: Path) -> Iterator[ListedImage]:
    """`path label` per line; the label is the last word, so that paths may hold spaces."""
    lines = read_list(file, "put the benchmark's list files into prepare.root").replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not label.isdecimal():
            raise DataError(f"{file} line {number}: {line!r} must be a path, a space and a label (a number)")
        yield ListedImage(number, path.strip(), label, None)


def _categories(root: Path) -> tuple[ClassName, ...]:
    """The species names of iNaturalist 2018's categories.json: [{"id": 0, "name": "..."}, ...]."""
    file = root / "categories.json"
    content = parse_json(read_list(file, "it comes with iNaturalist 2018 and names the classes"), str(file), DataError)
    try:
        names = {int(item["id"]): str(item["name"]) for item in content}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is not a list of objects with id and name: {error}") from None
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{file}: ids must run 0, 1, 2, ... without gaps")
    return tuple(ClassName(index=index, name=names[index]) for index in sorted(names))
