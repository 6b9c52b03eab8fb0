"""A split of a source: labels at once, images one by one when asked, so memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mdpr.artifacts import ROW_GROUP_IMAGES, ImageRecord, open_images
from mdpr.errors import DataError


class SourceSplit(Protocol):
    """labels_N: int64, the class of each image, in the order in which `records` counts them."""

    @property
    def labels_N(self) -> np.ndarray: ...

    def records(self, rows: np.ndarray) -> Iterator[tuple[ImageRecord, str]]:
        """The images of increasing `rows`, each with the words that name it in an error."""
        ...


@dataclass(frozen=True)
class FileSplit:
    """Images in files of their own; `origins` says which line or folder named each of them."""

    root: Path
    files: Sequence[str]
    labels_N: np.ndarray
    origins: Sequence[str] | None = None

    def records(self, rows: np.ndarray) -> Iterator[tuple[ImageRecord, str]]:
        for row in rows.tolist():
            file = self.root / self.files[row]
            where = f"{file} ({self.origins[row]})" if self.origins else str(file)
            try:
                image = file.read_bytes()
            except FileNotFoundError:
                raise DataError(f"{where} does not exist: add the file or correct its path") from None
            except OSError as error:
                raise DataError(f"{where} cannot be read: {error.strerror}") from None
            yield ImageRecord(image, self.files[row], int(self.labels_N[row])), where


@dataclass(frozen=True)
class ParquetSplit:
    """Rows of a Parquet file in the Hugging Face image layout: image{bytes, path}, label."""

    file: Path
    labels_N: np.ndarray

    @classmethod
    def open(cls, file: Path, classes: int) -> ParquetSplit:
        """Raises `DataError` for a label outside 0..classes-1, naming file and row."""
        with open_images(file) as parquet:
            column = parquet.read(["label"])["label"]
        if column.null_count:
            row = column.is_null().to_numpy().argmax()
            raise DataError(f"{file} row {row} has no label: label or remove it")
        labels_N = column.to_numpy().astype(np.int64)
        wrong = np.flatnonzero((labels_N < 0) | (labels_N >= classes))
        if wrong.size:
            raise DataError(
                f"{file} row {wrong[0]} has label {labels_N[wrong[0]]}, classes.json ends at {classes - 1}: "
                "correct the label or classes.json"
            )
        return cls(file, labels_N)

    def records(self, rows: np.ndarray) -> Iterator[tuple[ImageRecord, str]]:
        start = 0
        with open_images(self.file) as parquet:
            try:
                for batch in parquet.iter_batches(ROW_GROUP_IMAGES, columns=["image"]):
                    first, last = np.searchsorted(rows, [start, start + len(batch)])
                    for row in rows[first:last].tolist():
                        yield self._record(batch.column("image")[row - start].as_py(), row)
                    start += len(batch)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{self.file} is damaged after row {start}: {error}") from None

    def _record(self, image: dict[str, Any] | None, row: int) -> tuple[ImageRecord, str]:
        fields = image or {}
        data: bytes = fields.get("bytes") or b""  # decode_image refuses an empty one
        name: str = fields.get("path") or f"{self.file.stem}/{row}"
        return ImageRecord(data, name, int(self.labels_N[row])), f"{self.file} row {row} ({name})"
