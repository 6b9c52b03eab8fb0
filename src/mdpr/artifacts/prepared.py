"""prepared/: the three splits as Parquet, classes.json and card.json."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from mdpr.artifacts.formats import Format, parse, read_json, write_json
from mdpr.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Split = Literal["train", "val", "test"]
ShotGroup = Literal["many", "medium", "few"]
Validation = Literal["source", "left_over", "train_share"]
SHOT_GROUPS: tuple[ShotGroup, ...] = ("many", "medium", "few")
SPLITS: tuple[Split, ...] = ("train", "val", "test")
ROW_GROUP_IMAGES = 1000


class ClassInfo(Format):
    """One class of the label set. `index` is the key everywhere; names may repeat."""

    index: int = Field(ge=0)
    name: str = Field(min_length=1)
    disambiguation: str | None = None
    train_images: int = Field(ge=0)
    shot: ShotGroup


class ClassList(Format):
    format: Literal["mdpr-classes/1"] = "mdpr-classes/1"
    classes: tuple[ClassInfo, ...] = Field(min_length=2)


def write_classes(prepared: Path, classes: Sequence[ClassInfo]) -> None:
    write_json(prepared / "classes.json", ClassList(classes=tuple(classes)))


def read_classes(prepared: Path) -> tuple[ClassInfo, ...]:
    """The classes of a prepared data set, in order of index; `ArtifactError` where indices have gaps."""
    path = prepared / "classes.json"
    classes = parse(path, ClassList, read_json(path)).classes
    if [item.index for item in classes] != list(range(len(classes))):
        raise ArtifactError(f"{path}: indices must run 0, 1, 2, ... without gaps")
    return classes


class ImageRecord(NamedTuple):
    """One encoded image, the name it had in its source, and its class."""

    image: bytes
    path: str
    label: int


def write_images(path: Path, images: Sequence[bytes], image_paths: Sequence[str], labels: Sequence[int]) -> None:
    """One split from memory; see `write_image_records`."""
    write_image_records(path, itertools.starmap(ImageRecord, zip(images, image_paths, labels, strict=True)))


def write_image_records(path: Path, records: Iterable[ImageRecord]) -> int:
    """One split in the Hugging Face image layout, streamed: never more than a row group is held in memory.

    Returns the number of images. Pages are not compressed: the images in them already are. The same records
    give the same bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image_type), ("label", pa.int64())], {"huggingface": json.dumps({"info": features})})
    written = 0
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for group in _groups(records, ROW_GROUP_IMAGES):
            images, paths, labels = zip(*group, strict=True)
            image = pa.StructArray.from_arrays(
                [pa.array(images, pa.binary()), pa.array(paths, pa.string())], fields=list(image_type)
            )
            writer.write_table(pa.Table.from_arrays([image, pa.array(labels, pa.int64())], schema=schema))
            written += len(group)
    return written


def _groups(records: Iterable[ImageRecord], size: int) -> Iterator[list[ImageRecord]]:
    iterator = iter(records)
    while group := list(itertools.islice(iterator, size)):
        yield group


def open_images(path: Path) -> pq.ParquetFile:
    """A split's Parquet file, its columns checked, no image read yet.

    Raises `ArtifactError` where the file is missing, is not Parquet or lacks a column.
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


def read_images(path: Path) -> pa.Table:
    """A table with the columns image{bytes, path} and label (whole numbers), the encoded images in memory.

    Raises `ArtifactError` where the file is missing, is not Parquet or lacks a column.
    """
    import pyarrow as pa

    with open_images(path) as file:
        try:  # row group by row group: Arrow cannot read more than 2 GiB of a nested column in one go
            groups = [file.read_row_group(i, ["image", "label"]) for i in range(file.num_row_groups)]
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"{path} is damaged: {error}") from None
        return pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()


class DataCard(Format):
    """card.json: how a prepared data set was cut (the keys of `prepare` in params.yaml) and what came of it.

    validation: `source` the source brought a split of its own; `left_over` what the exponential cut left in
    the pool; `train_share` a share of each class's training images (profile natural).
    """

    format: Literal["mdpr-card/1"] = "mdpr-card/1"
    source: str
    profile: Literal["exponential", "natural"]
    imbalance_ratio: float
    max_images_per_class: int
    val_images_per_class: int
    many_above: int
    few_below: int
    seed: int
    validation: Validation
    images: dict[Split, int]
    images_per_class: dict[Split, tuple[int, ...]]  # in order of class index
    sha256: dict[str, str]  # of each split's file


def read_card(prepared: Path) -> DataCard:
    path = prepared / "card.json"
    return parse(path, DataCard, read_json(path))
