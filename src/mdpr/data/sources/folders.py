"""One folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mdpr.data.class_list import ClassName
from mdpr.data.intake import Faults, printable, utf8_name
from mdpr.data.sources.source import FileSplit, Place, Source, distinct_by_case
from mdpr.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def folder_source(place: Place) -> Source:
    """train/CLASS/*.jpg, with test/ and val/ if there are any; or CLASS/*.jpg in the root itself.

    Classes are the folders, sorted. Images may lie deeper inside a class folder.
    """
    root = place.root
    split_in = {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}
    if "train" not in split_in and split_in:
        raise DataError(f"{root} has a folder {next(iter(split_in))} but no folder train: add train/CLASS/*.jpg")
    pool = split_in.get("train", root)
    names = [utf8_name(folder.name, printable(folder)) for folder in class_folders(pool)]
    if not names:
        raise DataError(f"{pool} holds no folders: put each class's images into a folder of its name")
    distinct_by_case(names, pool)
    splits = {
        split: _split(root, folder, names, place.faults) for split, folder in split_in.items() if split != "train"
    }
    return Source(
        classes=tuple(ClassName(index=index, name=name) for index, name in enumerate(names)),
        pool=_split(root, pool, names, place.faults),
        val=splits.get("val"),
        test=splits.get("test"),
    )


def class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split(root: Path, folder: Path, names: Sequence[str], faults: Faults) -> FileSplit:
    index = {name: number for number, name in enumerate(names)}
    files: list[str] = []
    labels: list[int] = []
    for class_folder in class_folders(folder):
        if class_folder.name not in index:
            raise DataError(f"{printable(class_folder)} is a class that train does not have: add it or remove it")
        if folder.resolve().is_relative_to(class_folder.resolve()):
            raise DataError(f"{class_folder} is a symbolic link to a folder above it: remove it")
        for file in image_files(class_folder, faults):
            files.append(os.path.relpath(file, root))
            labels.append(index[class_folder.name])
    return FileSplit(root, files, np.array(labels, np.int64))


def image_files(folder: Path, faults: Faults) -> Iterator[Path]:
    """Files with the suffix of an image, in order of their paths; other files and dead links are reported."""
    for file in sorted(_files_below(folder)):
        if not file.is_file():
            faults.bad(DataError(f"{printable(file)} is a link that leads nowhere or in a circle: remove it"))
        elif file.suffix.lower() not in IMAGE_SUFFIXES:
            faults.leave_out(f"{printable(file)} has not the suffix of an image")
        else:
            yield file


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):  # does not follow links to folders
        for name in files:
            if not name.startswith("."):
                yield Path(parent, name)
        folders[:] = [name for name in folders if not name.startswith(".")]
