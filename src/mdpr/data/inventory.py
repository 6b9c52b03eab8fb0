"""The content of prepared/ as the tables that the expectations check: one per split, of the classes, of the profile.

Every image is decoded once, a few at a time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mdpr.artifacts import SPLITS, ClassInfo, DataCard, ImageFile, Split, image_batches, open_images, read_images
from mdpr.data.intake import map_in_order
from mdpr.data.near_duplicates import NOTHING, grey_thumbnail, nearest_within, perceptual_hashes
from mdpr.data.splits import PROFILES
from mdpr.errors import ArtifactError, DataError
from mdpr.images.decoding import decode_image, is_plain, pixel_digest, quiet_pillow
from mdpr.progress import track

THUMBNAIL_PX = 64


class Inspected(NamedTuple):
    """A row of a split as it was found; the fields after `fault` are missing if the image does not decode."""

    path: str | None
    path_fault: str | None
    label: int | None
    fault: str | None
    width_px: int | None = None
    height_px: int | None = None
    pixel_sha256: str | None = None
    one_colour: str | None = None
    thumbnail: bytes | None = None


def inspect_splits(prepared: Path) -> dict[Split, pd.DataFrame]:
    """A row per image: the fields of `Inspected`, with the perceptual hash instead of the thumbnail.

    Raises `ArtifactError` if a file is not in the form of a split.
    """
    return {split: _inspect_split(prepared / f"{split}.parquet", split) for split in SPLITS}


def split_tables(
    inspected: Mapping[Split, pd.DataFrame], classes: Sequence[ClassInfo], near_duplicate_bits: int | None
) -> dict[Split, pd.DataFrame]:
    """The rows of `inspect_splits` with their relations to each other; pictures of one colour have none.

    repeats is the first image of the same split with the same pixels; duplicate_of an image with the same pixels
    in an earlier split (train, val, test in this order); other_label an image with the same pixels and another label;
    near_duplicate_of one that looks like it, with the number of bits in which their hashes differ (missing throughout
    if `near_duplicate_bits` is None).
    """
    names = {item.index: item.display_name for item in classes}
    tables: dict[Split, pd.DataFrame] = {}
    seen: dict[str, str] = {}  # pixel hash -> where it was first met, in the splits before
    labels: dict[str, tuple[int, str]] = {}  # pixel hash -> its first label, and where that was
    hashes = {split: rows["hash"].where(rows["one_colour"].isna()) for split, rows in inspected.items()}
    for split, rows in inspected.items():
        table = rows.drop(columns="hash")
        digests = table["pixel_sha256"].where(table["one_colour"].isna())
        places = [_place(split, row, path) for row, path in enumerate(table["path"])]
        table["class_name"] = table["label"].map(names)
        table["duplicate_of"] = digests.map(seen)
        table["repeats"] = _first_places(digests, places)
        table["near_duplicate_of"] = _near_duplicates(tables, hashes, split, near_duplicate_bits)
        table.loc[table["duplicate_of"].notna(), "near_duplicate_of"] = None
        other: list[str | None] = [None] * len(table)
        for row, (digest, label) in enumerate(zip(digests, table["label"], strict=True)):
            if isinstance(digest, str):
                seen.setdefault(digest, places[row])
                first, place = labels.setdefault(digest, (label, places[row]))
                other[row] = place if first != label else None
        table["other_label"] = pd.Series(other, dtype="object")
        tables[split] = table
    return tables


def _place(split: Split, row: int, path: str | None) -> str:
    return f"{split} row {row}{f', {path}' if path else ''}"


def class_table(classes: Sequence[ClassInfo], splits: Mapping[Split, pd.DataFrame]) -> pd.DataFrame:
    """A row per class: index, display_name, train_images_declared; train_images, val_images, test_images as found."""
    table = pd.DataFrame(
        [(item.index, item.display_name, item.train_images) for item in classes],
        columns=["index", "display_name", "train_images_declared"],
    )
    for split, rows in splits.items():
        table[f"{split}_images"] = rows["label"].value_counts().reindex(table["index"], fill_value=0).to_numpy()
    return table


def profile_table(classes: pd.DataFrame, card: DataCard) -> pd.DataFrame:
    """One row: declared and real imbalance ratio of train, and that of val; a ratio over 0 is missing.

    A declared ratio is that of the whole numbers it leads to: 150 images at ratio 100 are 150 and 1. If
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


def _first_places(digests: pd.Series, places: Sequence[str]) -> pd.Series:
    """For each repeated value the place of its first occurrence, missing elsewhere."""
    return pd.Series(places, dtype="object").groupby(digests).transform("first").where(digests.duplicated())


def _near_duplicates(
    tables: Mapping[Split, pd.DataFrame], hashes: Mapping[Split, pd.Series], split: Split, max_bits: int | None
) -> pd.Series:
    """Where the nearest image of the splits before, those of `tables`, lies, in words; missing if none is near."""
    found = pd.Series([None] * len(hashes[split]), dtype="object")
    if max_bits is None or not tables:
        return found
    known, wanted = pd.concat({name: hashes[name] for name in tables}).dropna(), hashes[split].dropna()
    nearest_N, bits_N = nearest_within(known.to_numpy(np.uint64), wanted.to_numpy(np.uint64), max_bits)
    for row, nearest, bits in zip(wanted.index, nearest_N.tolist(), bits_N.tolist(), strict=True):
        if nearest != NOTHING:
            earlier, place = known.index[nearest]
            found[row] = f"{_place(earlier, place, tables[earlier]['path'][place])} ({bits} bits)"
    return found


def _inspect_split(file: Path, split: Split) -> pd.DataFrame:
    found: list[Inspected] = []
    hashes: list[np.ndarray] = []
    with open_images(file) as parquet, quiet_pillow():
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
    colour = f"#{picture.crop((0, 0, 1, 1)).tobytes().hex()}" if is_plain(picture) else None
    digest, thumbnail = pixel_digest(picture), grey_thumbnail(picture)
    return Inspected(path, path_fault, label, None, width_px, height_px, digest, colour, thumbnail)


def thumbnails(prepared: Path) -> Callable[[str, int], bytes | None]:
    """A function of split and row that gives the image as a PNG of at most 64 x 64, or None if it does not decode."""
    files: dict[str, ImageFile] = {}

    def thumbnail(split: str, row: int) -> bytes | None:
        if split not in SPLITS:
            return None
        try:
            if split not in files:
                files[split] = read_images(prepared / f"{split}.parquet")
            picture = decode_image(files[split].image(row), "the image")
        except (ArtifactError, DataError):
            return None
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()

    return thumbnail
