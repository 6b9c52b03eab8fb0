"""The interface of every source: splits whose labels are known at once and whose images are read later.

N images of a split. Memory does not grow with the images: each is read when its turn comes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from mdpr.artifacts import ClassName, Split, image_batches, open_images
from mdpr.artifacts.truth import Truth
from mdpr.data.intake import IntakeLog, Links
from mdpr.errors import DataError, printable
from mdpr.images.decoding import read_file
from mdpr.params import PrepareParams

IGNORE_INDEX = -1
"""The label of a row that is not used."""


class SourceImage(NamedTuple):
    """An image before it is read: `read` gives the encoded bytes, in any thread; `where` names it in an error."""

    read: Callable[[], bytes]
    path: str
    label: int
    where: str


class SourceSplit(Protocol):
    """labels_N: int64, the class of each image, in the order in which `images` counts them, or `IGNORE_INDEX`."""

    @property
    def labels_N(self) -> np.ndarray: ...

    def images(self, rows: np.ndarray) -> Iterator[SourceImage]:
        """The images of increasing `rows`."""
        ...


@dataclass(frozen=True)
class FileSplit:
    """Images in files of their own; `origins` says which line of which list named each of them."""

    root: Path
    files: Sequence[str]
    labels_N: np.ndarray
    origins: Sequence[str] | None = None
    follow_links: bool = False

    @cached_property
    def _links(self) -> Links:
        return Links(self.root, follow=self.follow_links)

    def images(self, rows: np.ndarray) -> Iterator[SourceImage]:
        for row in rows.tolist():
            file = self.root / self.files[row]
            where = f"{printable(file)} ({self.origins[row]})" if self.origins else printable(file)
            yield SourceImage(
                partial(self._read, file, where), printable(self.files[row]), int(self.labels_N[row]), where
            )

    def _read(self, file: Path, where: str) -> bytes:
        self._links.check(str(file), where)
        return read_file(file, where)


@dataclass(frozen=True)
class PixelSplit:
    """Images as pixels in memory, uint8 (N, H, W, 3); each becomes a PNG when it is read."""

    pixels_NHW3: np.ndarray
    labels_N: np.ndarray
    name: str

    def images(self, rows: np.ndarray) -> Iterator[SourceImage]:
        for row in rows.tolist():
            path = f"{self.name}/{row:05}.png"
            yield SourceImage(partial(encode_png, self.pixels_NHW3[row]), path, int(self.labels_N[row]), path)


def encode_png(pixels_HW3: np.ndarray) -> bytes:
    """Pixels uint8 (H, W, 3) as a PNG; the same pixels, the same bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels_HW3).save(stream, "PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class ParquetSplit:
    """Rows of a Parquet file in the Hugging Face image layout: image{bytes, path}, label."""

    file: Path
    labels_N: np.ndarray

    @classmethod
    def open(cls, file: Path, classes: int, log: IntakeLog) -> ParquetSplit:
        """Raises as `checked_labels` does."""
        with open_images(file) as parquet:
            column = parquet.read(["label"])["label"]
        return cls(file, checked_labels(column, classes, str(file), log))

    def images(self, rows: np.ndarray) -> Iterator[SourceImage]:
        start = 0
        with open_images(self.file) as parquet:
            try:
                for batch in image_batches(parquet, ["image"]):
                    first, last = np.searchsorted(rows, [start, start + len(batch)])
                    for row in rows[first:last].tolist():
                        yield self._image(batch.column("image")[row - start].as_py(), row)
                    start += len(batch)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise DataError(f"{self.file} is damaged after row {start}: {error}") from None

    def _image(self, image: dict[str, Any] | None, row: int) -> SourceImage:
        fields = image or {}
        data: bytes = fields.get("bytes") or b""  # decode_image refuses an empty one
        name = printable(fields.get("path") or f"{self.file.stem}/{row}")
        return SourceImage(lambda: data, name, int(self.labels_N[row]), f"{self.file} row {row} ({name})")


@dataclass(frozen=True)
class RelabelledSplit:
    """The images of another split with other labels."""

    split: SourceSplit
    labels_N: np.ndarray

    def images(self, rows: np.ndarray) -> Iterator[SourceImage]:
        for row, image in zip(rows.tolist(), self.split.images(rows), strict=True):
            yield image._replace(label=int(self.labels_N[row]))


def checked_labels(column: pa.ChunkedArray, classes: int, where: str, log: IntakeLog) -> np.ndarray:
    """A column of labels as int64 (N,). A row without a label, or with one outside 0..classes-1, is a fault.

    Raises `DataError` if no row has a label.
    """
    missing_N = column.is_null().to_numpy()
    labels_N = pc.fill_null(column, IGNORE_INDEX).to_numpy().astype(np.int64)
    if len(labels_N) and (labels_N < 0).all():
        raise DataError(
            f"{where} has no labels (all are -1 or null): set prepare.test_from to val or share if it is the test "
            "split, or label its rows"
        )
    for row in np.flatnonzero((labels_N < 0) | (labels_N >= classes)).tolist():
        fault = f"has label {labels_N[row]}, the classes end at {classes - 1}: correct it or add the class"
        log.bad(DataError(f"{where} row {row} {'has no label: label or remove it' if missing_N[row] else fault}"))
        labels_N[row] = IGNORE_INDEX
    return labels_N


@dataclass(frozen=True)
class Source:
    """A data set as it is found, before any cut.

    `val` and `test` are None if the source has none: they are then taken from the pool. `truth`: of a source that draws
    its pictures itself, the function from the rows of each split to what they show. `revision`: the commit that was
    read, if the source has one.
    """

    classes: tuple[ClassName, ...]
    pool: SourceSplit
    val: SourceSplit | None
    test: SourceSplit | None
    truth: Callable[[Mapping[Split, tuple[Any, np.ndarray]]], Truth] | None = None
    revision: str = ""

    @property
    def splits(self) -> dict[Split, SourceSplit]:
        """The splits that there are; the pool is `train`."""
        named: dict[Split, SourceSplit | None] = {"train": self.pool, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}


@dataclass(frozen=True)
class Place:
    """Where a source lies: its folder, the folder that listed paths start from, the settings, and the log of faults."""

    root: Path
    image_root: Path
    params: PrepareParams
    log: IntakeLog

    @classmethod
    def of(cls, params: PrepareParams, root: Path | None = None) -> Place:
        """The place that `params` name, or `root` with their other settings."""
        root = root or Path(params.root)
        log = IntakeLog(root, skip_bad=params.skip_bad)
        return cls(root, Path(params.image_root or root), params, log)

    @property
    def reads_test(self) -> bool:
        """Whether the source's own test split is wanted."""
        return self.params.test_from == "source"
