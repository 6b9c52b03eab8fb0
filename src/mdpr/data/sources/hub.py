"""The Hugging Face Hub, through the library `datasets` (extra `hub`)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdpr.data.class_list import name_labels
from mdpr.data.sources.source import Place, Source, SourceImage, checked_labels
from mdpr.errors import DataError, printable
from mdpr.images.decoding import read_file

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
VAL_NAMES = ("validation", "val", "valid")


@dataclass(frozen=True)
class HubSplit:
    """A split that `datasets` keeps in memory-mapped files; `image` is its image column, not decoded."""

    rows: Dataset
    image: str
    labels_N: np.ndarray
    name: str

    def images(self, rows: np.ndarray) -> Iterator[SourceImage]:
        for row in rows.tolist():
            fields: dict[str, Any] = self.rows[row][self.image] or {}
            path = printable(fields.get("path") or f"{self.name}/{row}")
            where = f"{self.name} row {row} ({path})"
            yield SourceImage(partial(_read, fields, where), path, int(self.labels_N[row]), where)


def _read(fields: Mapping[str, Any], where: str) -> bytes:
    """The bytes in the row; of an image that lies in a folder, the row has only its path."""
    if fields.get("bytes") is None and fields.get("path"):
        return read_file(Path(fields["path"]), where)
    return fields.get("bytes") or b""


def hub_source(place: Place) -> Source:
    """The data set `prepare.hub_name` at `prepare.rev`, its splits train, test and validation, kept under the root.

    It must have one column of images and one of class labels in every split. Raises `DataError` if the library is not
    installed, or if the data set is not there and cannot be fetched.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError("prepare.source = huggingface needs the library datasets: pip install 'mdpr[hub]'") from None
    name = place.params.hub_name
    if Path(name).is_dir() and (place.root / Path(name).name).resolve() == Path(name).resolve():
        raise DataError(
            f"prepare.root = {place.root} keeps the library's copy, which would be part of {name}: change it"
        )
    try:
        loaded = datasets.load_dataset(name, cache_dir=str(place.root), revision=place.params.rev or None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise DataError(f"prepare.hub_name = {name}: cannot be loaded ({reason}): check name and network") from None
    if "train" not in loaded:
        raise DataError(f"prepare.hub_name = {name} has no split train, but {', '.join(loaded)}")
    if not place.params.rev and not Path(name).exists():
        logger.warning(
            "prepare.hub_name = %s: set prepare.rev to a commit, so that every run reads the same data", name
        )
    label = _one_column(loaded["train"].features, datasets.ClassLabel, name)
    names = loaded["train"].features[label].names
    wanted = ("train", *VAL_NAMES, *(("test",) if place.reads_test else ()))
    opened = {
        split: _open(rows, f"{name} {split}", len(names), place) for split, rows in loaded.items() if split in wanted
    }
    return Source(
        classes=name_labels(names, Path(name), place.params.class_name_style),
        pool=opened["train"],
        val=next((opened[split] for split in VAL_NAMES if split in opened), None),
        test=opened.get("test"),
        revision=_commit(loaded["train"]),
    )


def _commit(rows: Dataset) -> str:
    """The commit that was read: `datasets` keeps rows in a folder of that name. Empty for a folder on this machine."""
    name = Path(rows.cache_files[0]["filename"]).parent.name if rows.cache_files else ""
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else ""


def _open(rows: Dataset, name: str, classes: int, place: Place) -> HubSplit:
    import datasets

    image = _one_column(rows.features, datasets.Image, name)
    label = _one_column(rows.features, datasets.ClassLabel, name)
    labels_N = checked_labels(rows.data.column(label), classes, name, place.log)
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return HubSplit(encoded, image, labels_N, name)


def _one_column(features: Any, kind: type, name: str) -> str:
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise DataError(
            f"prepare.hub_name = {name} has {len(found)} columns of type {kind.__name__}, expected 1: "
            "export it as Parquet with classes.json and use prepare.source = parquet"
        )
    return found[0]
