"""Where images come from: one short function a source, listed in SOURCES.

A source gives its class list and its splits: the pool that training is cut from, a test split, and a
validation split if it has one. A new source is a function of its folder, and a line in the table.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdpr.artifacts import Split
from mdpr.data.class_list import ClassName, LabelReader, read_class_list
from mdpr.data.splits import FileSplit, ParquetSplit, SourceSplit
from mdpr.errors import DataError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CSV_COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class Source:
    """A data set as it is found, before any cut."""

    classes: tuple[ClassName, ...]
    pool: SourceSplit
    val: SourceSplit | None
    test: SourceSplit


def open_source(kind: str, root: Path) -> Source:
    """The source `kind` in the folder `root`, labels read and checked, images not yet.

    Raises `DataError` that names the file (and row) at fault.
    """
    if not root.is_dir():
        raise DataError(f"prepare.root = {root}: there is no such folder")
    source = SOURCES[kind](root)
    if len(source.classes) < 2:
        raise DataError(f"{root} has {len(source.classes)} class, at least 2 are needed")
    return source


def parquet_source(root: Path) -> Source:
    """pool.parquet, test.parquet and classes.json; val.parquet if there is one."""
    classes = read_class_list(root / "classes.json")
    for name in ("pool.parquet", "test.parquet"):
        if not (root / name).is_file():
            raise DataError(f"{root / name} is missing: prepare.root must hold pool.parquet and test.parquet")
    val = root / "val.parquet"
    return Source(
        classes=classes,
        pool=ParquetSplit.open(root / "pool.parquet", len(classes)),
        val=ParquetSplit.open(val, len(classes)) if val.is_file() else None,
        test=ParquetSplit.open(root / "test.parquet", len(classes)),
    )


def folder_source(root: Path) -> Source:
    """train/CLASS/*.jpg, test/CLASS/*.jpg, val/ if there is one; classes: the folders of train/, sorted."""
    if not (root / "train").is_dir() or not (root / "test").is_dir():
        raise DataError(f"{root} must hold the folders train and test, one folder a class in each")
    names = [folder.name for folder in _class_folders(root / "train")]
    return Source(
        classes=tuple(ClassName(index=index, name=name) for index, name in enumerate(names)),
        pool=_folder_split(root, "train", names),
        val=_folder_split(root, "val", names) if (root / "val").is_dir() else None,
        test=_folder_split(root, "test", names),
    )


def csv_source(root: Path) -> Source:
    """images.csv with the columns path, label, split; classes.json beside it if labels are to be indices.

    A label is a class name, or an index into classes.json. Without that file the classes are the names that
    occur, sorted.
    """
    rows = list(_csv_rows(root / "images.csv"))
    class_list = root / "classes.json"
    classes = read_class_list(class_list) if class_list.is_file() else None
    reader = LabelReader(classes, [label for _, _, label, _ in rows], root / "images.csv")
    splits = {split: _csv_split(root, rows, split, reader) for split in ("train", "val", "test")}
    return Source(
        classes=reader.classes,
        pool=splits["train"],
        val=splits["val"] if len(splits["val"].files) else None,
        test=splits["test"],
    )


SOURCES: dict[str, Callable[[Path], Source]] = {
    "embedded": parquet_source,
    "parquet": parquet_source,
    "folder": folder_source,
    "csv": csv_source,
}


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _folder_split(root: Path, split: Split, names: Sequence[str]) -> FileSplit:
    files: list[str] = []
    labels: list[int] = []
    for folder in _class_folders(root / split):
        if folder.name not in names:
            raise DataError(f"{folder} is a class that {root / 'train'} does not have: add it there or remove it")
        found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
        if len(images) < len(found):
            other = next(path for path in found if path.suffix.lower() not in IMAGE_SUFFIXES)
            logger.warning(
                "%s: left out %d files that are no images (%s)", folder, len(found) - len(images), other.name
            )
        files += [path.relative_to(root).as_posix() for path in images]
        labels += [names.index(folder.name)] * len(images)
    return FileSplit(root, files, np.array(labels, np.int64))


CsvRow = tuple[int, str, str, str]  # line in the file, path, label, split


def _csv_rows(file: Path) -> Iterator[CsvRow]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            for column in columns:
                if column not in CSV_COLUMNS:
                    raise DataError(f"{file} has an unknown column {column!r}: it must have path, label and split")
            for column in CSV_COLUMNS:
                if columns.count(column) != 1:
                    raise DataError(f"{file} must have one column {column!r}; it has {', '.join(columns) or 'none'}")
            reader.fieldnames = columns
            for row in reader:
                values = [row[column] for column in CSV_COLUMNS]
                if None in row or None in values:
                    raise DataError(f"{file} line {reader.line_num}: expected 3 values, path, label and split")
                path, label, split = (value.strip() for value in values)
                if split not in ("train", "val", "test"):
                    raise DataError(f"{file} line {reader.line_num}: split {split!r} must be train, val or test")
                yield reader.line_num, path, label, split
    except FileNotFoundError:
        raise DataError(f"{file} is missing: list the images in it, columns path, label, split") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{file} after line {reader.line_num}: {error}") from None


def _csv_split(root: Path, rows: Sequence[CsvRow], split: str, reader: LabelReader) -> FileSplit:
    chosen = [row for row in rows if row[3] == split]
    return FileSplit(
        root,
        [path for _, path, _, _ in chosen],
        np.array([reader.index(label, line) for line, _, label, _ in chosen], np.int64),
        [f"images.csv line {line}" for line, _, _, _ in chosen],
    )
