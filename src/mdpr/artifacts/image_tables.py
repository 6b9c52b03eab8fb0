"""A split of prepared/: images and labels in one Parquet file, written as a stream and read one image at a time.

The layout is Hugging Face's: image{bytes, path}, label. Pages are neither compressed nor dictionary-encoded
(the images in them are compressed already), so that every image lies in the file as one run of bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mdpr.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP_IMAGES = 1000
ROW_GROUP_BYTES = 8 * 2**20  # of images; buffers of this size are used again, larger ones are mapped anew each time
BATCH_BYTES = 64 * 2**20  # of images that are read together
GAP_BYTES = 4 * 2**20  # a page's header, or the paths and labels between two row groups, fit in here


class ImageRecord(NamedTuple):
    """One encoded image, the name it had in its source, and its class."""

    image: bytes
    path: str
    label: int


def write_images(path: Path, images: Sequence[bytes], image_paths: Sequence[str], labels: Sequence[int]) -> None:
    """One split from memory; see `write_image_records`."""
    write_image_records(path, itertools.starmap(ImageRecord, zip(images, image_paths, labels, strict=True)))


def write_image_records(path: Path, records: Iterable[ImageRecord]) -> None:
    """One split, streamed: a row group is written while the next one is taken. The same records give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image_type), ("label", pa.int64())], {"huggingface": json.dumps({"info": features})})

    def write(group: list[ImageRecord]) -> None:
        images, paths, labels = zip(*group, strict=True)
        image = pa.StructArray.from_arrays(
            [pa.array(images, pa.binary()), pa.array(paths, pa.string())], fields=list(image_type)
        )
        writer.write_table(pa.Table.from_arrays([image, pa.array(labels, pa.int64())], schema=schema))

    with (
        pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        writing: Future[None] | None = None
        for group in _row_groups(records):
            if writing:
                writing.result()
            writing = thread.submit(write, group)
        if writing:
            writing.result()


def _row_groups(records: Iterable[ImageRecord]) -> Iterator[list[ImageRecord]]:
    group: list[ImageRecord] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record.image)
        if len(group) == ROW_GROUP_IMAGES or size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def open_images(path: Path) -> pq.ParquetFile:
    """A split's Parquet file, its columns checked, no image read yet.

    Raises `ArtifactError` if the file is missing, is not Parquet or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)  # pre_buffer holds the whole file
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run the stage that writes it") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file: {error}") from None
    schema = file.schema_arrow
    image = schema.field("image").type if "image" in schema.names else None
    if image is None or not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise ArtifactError(f"{path} must have a column image with a field bytes (Hugging Face image layout)")
    if "label" not in schema.names or not pa.types.is_integer(schema.field("label").type):
        raise ArtifactError(f"{path} must have a column label of whole numbers")
    return file


def image_batches(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of `columns` in order, about `BATCH_BYTES` and at most `ROW_GROUP_IMAGES` of them at a time."""
    metadata = file.metadata
    total_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    mean_bytes = max(1, total_bytes // max(1, metadata.num_rows))
    rows = max(1, min(ROW_GROUP_IMAGES, BATCH_BYTES // mean_bytes))
    yield from file.iter_batches(rows, columns=list(columns), use_threads=False)


class ImageFile:
    """A split that stays on disk: labels and places of the images in memory, each image read when it is needed.

    Reading is one `pread`, which shares no position: processes forked from this one read side by side, and a
    copy sent to another process opens the file again. labels_N: int64 (N,).
    """

    def __init__(self, path: Path, labels_N: np.ndarray, offsets_N: np.ndarray, lengths_N: np.ndarray, names: Any):
        self.path = path
        self.labels_N = labels_N
        self._offsets_N = offsets_N
        self._lengths_N = lengths_N
        self._names = names
        self._file = path.open("rb", buffering=0)

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, row: int) -> ImageRecord:
        """The row's encoded image (empty if the file has none), its name ("" if it has none), its label."""
        name = None if self._names is None else self._names[row].as_py()
        return ImageRecord(self.image(row), name or "", int(self.labels_N[row]))

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self.__getitem__, range(len(self)))

    def image(self, row: int) -> bytes:
        """The encoded image of a row."""
        return os.pread(self._file.fileno(), int(self._lengths_N[row]), int(self._offsets_N[row]))

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageFile, (self.path, self.labels_N, self._offsets_N, self._lengths_N, self._names)


def image_digest(image: bytes) -> int:
    """The first 63 bits of the sha256 of an encoded image: no two images of a data set share them."""
    return int.from_bytes(hashlib.sha256(image).digest()[:8]) >> 1


def image_digests(images: ImageFile) -> np.ndarray:
    """`image_digest` of each image, int64 (N,)."""
    import numpy as np

    return np.fromiter((image_digest(images.image(row)) for row in range(len(images))), np.int64, len(images))


def read_images(path: Path) -> ImageFile:
    """A split as `write_image_records` leaves it, for access in any order.

    The file is read through once, to find where each image lies. Raises `ArtifactError` if it is missing, is not
    Parquet, lacks a column, or has compressed pages.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    with open_images(path) as file:
        try:
            table = file.read(["label", "image.path"])
            labels_N = table["label"].to_numpy().astype(np.int64)
            has_names = file.schema_arrow.field("image").type.get_field_index("path") >= 0
            names = pc.struct_field(table["image"], "path").combine_chunks() if has_names else None
            offsets, lengths = [], []
            position = 0
            with path.open("rb", buffering=0) as raw:
                for batch in image_batches(file, ["image.bytes"]):
                    for data in pc.struct_field(batch["image"], "bytes").to_pylist():
                        start = _find(raw.fileno(), data or b"", position, path)
                        offsets.append(start)
                        lengths.append(len(data or b""))
                        position = start + lengths[-1]
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"{path} is damaged: {error}") from None
    return ImageFile(path, labels_N, np.array(offsets, np.int64), np.array(lengths, np.int64), names)


def _find(descriptor: int, data: bytes, position: int, path: Path) -> int:
    """Where `data` lies after `position`: behind its length (4 bytes), as Parquet writes a value on a plain page."""
    if not data:
        return position
    value = len(data).to_bytes(4, "little") + data
    if os.pread(descriptor, len(value), position) == value:  # next to the value before
        return position + 4
    gap = os.pread(descriptor, GAP_BYTES + len(value), position).find(value)
    if gap < 0:
        raise ArtifactError(f"{path} has compressed or encoded pages: write it with the stage prepare")
    return position + gap + 4
