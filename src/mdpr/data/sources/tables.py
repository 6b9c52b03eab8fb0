"""Sources that are a table: Parquet in the Hugging Face image layout, and CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdpr.data.class_list import LabelReader, read_class_list
from mdpr.data.sources.source import Place, Source, distinct_by_case
from mdpr.data.splits import FileSplit, ParquetSplit
from mdpr.errors import DataError

COLUMNS = ("path", "label")
SPLIT_COLUMN = "split"
CSV_SPLITS = ("train", "val", "test")


def parquet_source(place: Place) -> Source:
    """pool.parquet, test.parquet and classes.json; val.parquet if there is one."""
    root = place.root
    classes = read_class_list(root / "classes.json")
    for name in ("pool.parquet", "test.parquet"):
        if not (root / name).is_file():
            raise DataError(f"{root / name} is missing: prepare.root must hold pool.parquet and test.parquet")
    val = root / "val.parquet"
    return Source(
        classes=classes,
        pool=ParquetSplit.open(root / "pool.parquet", len(classes), place.faults),
        val=ParquetSplit.open(val, len(classes), place.faults) if val.is_file() else None,
        test=ParquetSplit.open(root / "test.parquet", len(classes), place.faults),
    )


def csv_source(place: Place) -> Source:
    """images.csv with the columns path, label and, where there are splits, split.

    A label is a class name, or an index into classes.json beside it. Without that file the classes are the
    names that occur, sorted.
    """
    file, class_list = place.root / "images.csv", place.root / "classes.json"
    rows = list(_rows(file))
    classes = read_class_list(class_list) if class_list.is_file() else None
    reader = LabelReader(classes, [row.label for row in rows], file)
    if classes is None:
        distinct_by_case([item.name for item in reader.classes], file)
    splits = {split: listed_split(place, rows, split, reader) for split in CSV_SPLITS}
    has_splits = any(row.split is not None for row in rows)
    return Source(
        classes=reader.classes,
        pool=splits["train"],
        val=splits["val"] if len(splits["val"].files) else None,
        test=splits["test"] if has_splits else None,
    )


class ListedImage(NamedTuple):
    """A line of a list: `split` is None where the list has none."""

    line: int
    path: str
    label: str
    split: str | None


def listed_split(place: Place, rows: Sequence[ListedImage], split: str, reader: LabelReader) -> FileSplit:
    """The rows of a split (train has those without one); rows that cannot be used go to `place.faults`."""
    chosen: list[ListedImage] = []
    labels: list[int] = []
    for row in rows:
        if (row.split or "train") != split:
            continue
        try:
            inside(row.path, place.image_root, f"{reader.file} line {row.line}")
            labels.append(reader.index(row.label, row.line))
        except DataError as error:
            place.faults.bad(error)
            continue
        chosen.append(row)
    return FileSplit(
        place.image_root,
        [row.path for row in chosen],
        np.array(labels, np.int64),
        [f"{reader.file.name} line {row.line}" for row in chosen],
    )


def inside(path: str, root: Path, where: str) -> None:
    """Raises `DataError` for an empty path and for one that leads out of `root`."""
    if not path:
        raise DataError(f"{where}: the path is empty")
    steps = os.path.normpath(path).split(os.sep)
    if os.path.isabs(path) or steps[0] == os.pardir:
        raise DataError(f"{where}: path {path!r} leads out of {root}: write it from there")


def _rows(file: Path) -> Iterator[ListedImage]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            _check_columns(columns, file)
            reader.fieldnames = columns
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{file} line {reader.line_num}: expected {len(columns)} values, {', '.join(columns)}"
                    )
                values = {column: value.strip() for column, value in row.items()}
                split = values.get(SPLIT_COLUMN)
                if split is not None and split not in CSV_SPLITS:
                    raise DataError(f"{file} line {reader.line_num}: split {split!r} must be train, val or test")
                yield ListedImage(reader.line_num, values["path"], values["label"], split)
    except FileNotFoundError:
        raise DataError(f"{file} is missing: list the images in it, columns path, label, split") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{file} after line {reader.line_num}: {error}") from None


def _check_columns(columns: Sequence[str], file: Path) -> None:
    for column in columns:
        if column not in (*COLUMNS, SPLIT_COLUMN):
            raise DataError(f"{file} has an unknown column {column!r}: it must have path, label and split")
    for column in COLUMNS:
        if columns.count(column) != 1:
            raise DataError(f"{file} must have one column {column!r}; it has {', '.join(columns) or 'none'}")
    if columns.count(SPLIT_COLUMN) > 1:
        raise DataError(f"{file} has two columns {SPLIT_COLUMN!r}: keep one")
