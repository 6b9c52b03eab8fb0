"""What is really in prepared/: a pandas table a split, one of the classes and one of the profile.

Every image is decoded once, a few at a time. These tables are what the expectations speak about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mdpr.artifacts import SPLITS, ClassInfo, DataCard, Split, image_batches, open_images
from mdpr.data.images import decode_image, quiet_about_large_images
from mdpr.data.parallel import map_in_order
from mdpr.data.perceptual import NOTHING, grey_thumbnail, nearest_within, perceptual_hashes
from mdpr.data.profiles import PROFILES
from mdpr.errors import ArtifactError, DataError
from mdpr.progress import track


class Inspected(NamedTuple):
    """What one row of a split is; the fields after `fault` are missing where the image does not decode."""

    path: str | None
    path_fault: str | None
    label: int | None
    fault: str | None
    width_px: int | None = None
    height_px: int | None = None
    pixel_sha256: str | None = None
    thumbnail: bytes | None = None


def display_name(item: ClassInfo) -> str:
    """The name people see; with the disambiguation where two classes share a name."""
    return f"{item.name} ({item.disambiguation})" if item.disambiguation else item.name


def inspect_splits(prepared: Path) -> dict[Split, pd.DataFrame]:
    """A row an image, the fields of `Inspected` with the perceptual hash instead of the thumbnail.

    Raises `ArtifactError` where a file is not in the form of a split.
    """
    return {split: _inspect_split(prepared / f"{split}.parquet", split) for split in SPLITS}


def split_tables(
    inspected: Mapping[Split, pd.DataFrame], classes: Sequence[ClassInfo], near_duplicate_bits: int | None
) -> dict[Split, pd.DataFrame]:
    """The rows of `inspect_splits` with what they have to do with each other.

    repeats_row is the first row of the same split with the same pixels; duplicate_of an image with the same pixels
    in an earlier split (train, val, test in this order); near_duplicate_of one that looks like it, with the
    number of bits in which their hashes differ (missing throughout where `near_duplicate_bits` is None).
    """
    names = dict(enumerate(map(display_name, classes)))
    tables: dict[Split, pd.DataFrame] = {}
    seen: dict[str, str] = {}  # pixel hash -> where it was first met, in the splits before
    for split, rows in inspected.items():
        table = rows.drop(columns="hash")
        table["class_name"] = table["label"].map(names)
        table["duplicate_of"] = table["pixel_sha256"].map(seen)
        table["repeats_row"] = _first_rows(table["pixel_sha256"])
        earlier = {name: inspected[name]["hash"] for name in tables}
        table["near_duplicate_of"] = _near_duplicates(earlier, rows["hash"], near_duplicate_bits)
        table.loc[table["duplicate_of"].notna(), "near_duplicate_of"] = None
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

    A declared ratio is that of the whole numbers it leads to: 150 images at ratio 100 are 150 and 1. Where
    validation was taken out of the cut, or images were left out, it is that of what card.json counts.
    """
    declared_C = card.images_per_class["train"]
    if card.profile != "natural" and card.validation != "train_share" and not card.left_out:
        declared_C = tuple(PROFILES[card.profile](card, card.imbalance_ratio, len(classes)))
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


def _near_duplicates(earlier: Mapping[Split, pd.Series], hashes: pd.Series, max_bits: int | None) -> pd.Series:
    """Where the nearest image of the splits before lies, in words; missing where none is near."""
    found = pd.Series([None] * len(hashes), dtype="object")
    known = [(split, row, value) for split, column in earlier.items() for row, value in column.dropna().items()]
    asked = hashes.dropna()
    if max_bits is None or not known or asked.empty:
        return found
    known_M = np.array([value for _, _, value in known], np.uint64)
    nearest_N, bits_N = nearest_within(known_M, asked.to_numpy(np.uint64), max_bits)
    for row, nearest, bits in zip(asked.index, nearest_N.tolist(), bits_N.tolist(), strict=True):
        if nearest != NOTHING:
            split, place, _ = known[nearest]
            found[row] = f"{split} row {place} ({bits} bits)"
    return found


def _inspect_split(file: Path, split: Split) -> pd.DataFrame:
    found: list[Inspected] = []
    hashes: list[np.ndarray] = []
    with open_images(file) as parquet, quiet_about_large_images():
        progress = track(image_batches(parquet, ["image", "label"]), f"inspect {split}, in batches")
        try:
            for batch in progress:
                rows = list(map_in_order(_inspect, _rows(batch)))
                thumbnails = [row.thumbnail for row in rows if row.thumbnail is not None]
                hashes.append(perceptual_hashes(thumbnails))
                found += [row._replace(thumbnail=None) for row in rows]
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"{file} is damaged: {error}") from None
    table = pd.DataFrame(found, columns=list(Inspected._fields)).drop(columns="thumbnail")
    table["hash"] = pd.Series(np.nan, index=table.index, dtype="UInt64")
    if hashes:
        table.loc[table["fault"].isna(), "hash"] = np.concatenate(hashes)
    return table


def _rows(batch: pa.RecordBatch) -> list[tuple[bytes, bytes | None, int | None]]:
    """Encoded image, name (as bytes, which need not be text) and label of each row."""
    has_names = batch["image"].type.get_field_index("path") >= 0
    names = pc.struct_field(batch["image"], "path").cast(pa.binary()).to_pylist() if has_names else [None] * len(batch)
    images = pc.struct_field(batch["image"], "bytes").to_pylist()
    return list(zip((image or b"" for image in images), names, batch["label"].to_pylist(), strict=True))


def _inspect(row: tuple[bytes, bytes | None, int | None]) -> Inspected:
    data, name, label = row
    path, path_fault = None, None
    try:
        path = name.decode("utf-8") if name is not None else None
    except UnicodeDecodeError:
        path_fault = f"{name!r} is not UTF-8"
    try:
        picture = decode_image(data, "the image")
    except DataError as error:
        return Inspected(path, path_fault, label, str(error))
    width_px, height_px = picture.size
    pixels = hashlib.sha256(f"{width_px}x{height_px}\0".encode() + picture.tobytes()).hexdigest()
    return Inspected(path, path_fault, label, None, width_px, height_px, pixels, grey_thumbnail(picture))
