"""The Hugging Face Hub, through the library `datasets` (extra `hub`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdpr.data.class_list import ClassName
from mdpr.data.sources.source import Place, Source, SourceImage, read_file
from mdpr.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

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
            path = fields.get("path") or f"{self.name}/{row}"
            where = f"{self.name} row {row} ({path})"
            yield SourceImage(partial(_read, fields, where), path, int(self.labels_N[row]), where)


def _read(fields: Mapping[str, Any], where: str) -> bytes:
    """The bytes in the row; of an image that lies in a folder, the row has its path alone."""
    if fields.get("bytes") is None and fields.get("path"):
        return read_file(Path(fields["path"]), where)
    return fields.get("bytes") or b""


def hub_source(place: Place) -> Source:
    """The data set `prepare.hub_name` with its splits train, test and validation; kept under the root.

    It must have one column of images and one of class labels. Raises `DataError` where the library is not
    installed, or where the data set is not there and cannot be fetched.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError("prepare.source = huggingface needs the library datasets: pip install 'mdpr[hub]'") from None
    try:
        loaded = datasets.load_dataset(place.hub_name, cache_dir=str(place.root))
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise DataError(
            f"prepare.hub_name = {place.hub_name}: cannot be loaded ({reason}): check name and network"
        ) from None
    if "train" not in loaded:
        raise DataError(f"prepare.hub_name = {place.hub_name} has no split train, but {', '.join(loaded)}")
    features = loaded["train"].features
    image = _one_column(features, datasets.Image, place.hub_name)
    label = _one_column(features, datasets.ClassLabel, place.hub_name)
    opened = {
        name: HubSplit(
            rows.select_columns([image]).cast_column(image, datasets.Image(decode=False)),
            image,
            np.asarray(rows.with_format("numpy", columns=[label])[label][:], dtype=np.int64),
            f"{place.hub_name} {name}",
        )
        for name, rows in loaded.items()
        if name in ("train", "test", *VAL_NAMES)
    }
    return Source(
        classes=tuple(ClassName(index=index, name=name) for index, name in enumerate(features[label].names)),
        pool=opened["train"],
        val=next((opened[name] for name in VAL_NAMES if name in opened), None),
        test=opened.get("test"),
    )


def _one_column(features: Any, kind: type, name: str) -> str:
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise DataError(
            f"prepare.hub_name = {name} has {len(found)} columns of type {kind.__name__}, expected 1: "
            "export it as Parquet with classes.json and use prepare.source = parquet"
        )
    return found[0]
