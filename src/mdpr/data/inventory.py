"""What is really in prepared/: a pandas table a split, one of the classes and one of the profile.

Every image is decoded once, a row group at a time. These tables are what the expectations speak about.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from mdpr.artifacts import ROW_GROUP_IMAGES, SPLITS, ClassInfo, DataCard, Split, open_images
from mdpr.data.images import decode_image, quiet_about_large_images
from mdpr.data.long_tail import exponential_profile
from mdpr.errors import DataError
from mdpr.progress import track

SPLIT_COLUMNS = [
    "path",
    "label",
    "class_name",
    "decodes",
    "fault",
    "width_px",
    "height_px",
    "pixel_sha256",
    "repeats_row",
    "duplicate_of",
]


def display_name(item: ClassInfo) -> str:
    """The name people see; with the disambiguation where two classes share a name."""
    return f"{item.name} ({item.disambiguation})" if item.disambiguation else item.name


def split_tables(prepared: Path, classes: Sequence[ClassInfo]) -> dict[Split, pd.DataFrame]:
    """A row an image, the columns of `SPLIT_COLUMNS`.

    fault is why an image does not decode (its sides and hash are then missing); repeats_row the first row of
    the same split with the same pixels; duplicate_of an image with the same pixels in an earlier split (train,
    val, test in this order). Raises `ArtifactError` where a file is not in the form of a split.
    """
    names = dict(enumerate(map(display_name, classes)))
    tables: dict[Split, pd.DataFrame] = {}
    seen: dict[str, str] = {}  # pixel hash -> where it was first met, in the splits before
    for split in SPLITS:
        rows = pd.DataFrame(list(_inspect_split(prepared / f"{split}.parquet", split)))
        table = rows.reindex(columns=SPLIT_COLUMNS)
        table["class_name"] = table["label"].map(names)
        table["duplicate_of"] = table["pixel_sha256"].map(seen)
        table["repeats_row"] = _first_rows(table["pixel_sha256"])
        for row, digest in table["pixel_sha256"].dropna().items():
            seen.setdefault(digest, f"{split} row {row}")
        tables[split] = table
    return tables


def class_table(classes: Sequence[ClassInfo], splits: Mapping[Split, pd.DataFrame]) -> pd.DataFrame:
    """A row a class: index, names, train_images_declared; train_images, val_images, test_images as found."""
    table = pd.DataFrame(
        {
            "index": [item.index for item in classes],
            "name": [item.name for item in classes],
            "display_name": [display_name(item) for item in classes],
            "train_images_declared": [item.train_images for item in classes],
        }
    )
    for split, rows in splits.items():
        table[f"{split}_images"] = rows["label"].value_counts().reindex(table["index"], fill_value=0).to_numpy()
    return table


def profile_table(classes: pd.DataFrame, card: DataCard) -> pd.DataFrame:
    """One row: declared and real imbalance ratio of train, and that of val; a ratio over 0 is missing.

    A declared ratio is that of the whole numbers it leads to: 150 images at ratio 100 are 150 and 1.
    """
    declared_C = card.images_per_class["train"]
    if card.profile == "exponential":
        declared_C = tuple(exponential_profile(card.max_images_per_class, card.imbalance_ratio, len(classes)))
    return pd.DataFrame(
        {
            "declared_imbalance_ratio": [_ratio(declared_C)],
            "imbalance_ratio": [_ratio(classes["train_images"])],
            "val_imbalance_ratio": [_ratio(classes["val_images"])],
        },
        dtype="float64",
    )


def _ratio(counts: Sequence[int] | pd.Series) -> float | None:
    return max(counts) / min(counts) if min(counts) else None


def _first_rows(digests: pd.Series) -> pd.Series:
    """For each repeated value the row of its first occurrence, missing elsewhere."""
    first = digests.drop_duplicates().dropna()
    rows = digests.map(dict(zip(first, first.index, strict=True)))
    return rows.where(digests.duplicated() & digests.notna())


def _inspect_split(file: Path, split: Split) -> Iterator[dict[str, Any]]:
    with open_images(file) as parquet, quiet_about_large_images(), ThreadPoolExecutor() as threads:
        batches = parquet.iter_batches(ROW_GROUP_IMAGES, columns=["image", "label"])
        total = math.ceil(parquet.metadata.num_rows / ROW_GROUP_IMAGES)
        for batch in track(batches, f"inspect {split}, in thousands", total=total):
            yield from threads.map(_inspect, batch.to_pylist())


def _inspect(row: dict[str, Any]) -> dict[str, Any]:
    image = row["image"] or {}
    found: dict[str, Any] = {"path": image.get("path"), "label": row["label"]}
    try:
        picture = decode_image(image.get("bytes") or b"", "the image")
    except DataError as error:
        return {**found, "decodes": False, "fault": str(error)}
    width_px, height_px = picture.size
    pixels = hashlib.sha256(f"{width_px}x{height_px}\0".encode() + picture.tobytes()).hexdigest()
    return {**found, "decodes": True, "width_px": width_px, "height_px": height_px, "pixel_sha256": pixels}
