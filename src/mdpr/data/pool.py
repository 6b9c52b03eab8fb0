"""The images of a source: each read and decoded once, in threads, and kept with the marks that identify it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdpr.artifacts import NO_HASH, ImageRecord, Pictures, image_digest, write_image_records
from mdpr.data.intake import IntakeLog, map_in_order
from mdpr.data.near_duplicates import grey_thumbnail, perceptual_hashes
from mdpr.data.sources.source import SourceImage, SourceSplit
from mdpr.errors import DataError
from mdpr.images.decoding import Note, decode_image, is_plain, pixel_digest, quiet_pillow, verify_image
from mdpr.params import PrepareParams

HASHED_TOGETHER = 16  # a hash by itself costs as much as decoding a tiny image
HELD_BYTES = 128 * 2**20  # of images that wait in memory; more of them wait on disk


class Picture(NamedTuple):
    """An image as it is kept: the row it had in its source, `image_digest`, perceptual hash or `NO_HASH`, and, if
    duplicates are dropped, the digest of its pixels."""

    record: ImageRecord
    row: int
    digest: int
    hash: int
    pixels: str | None


class _Checked(NamedTuple):
    picture: Picture
    thumbnail: bytes
    notes: tuple[Note, ...]


def read_pictures_of(split: SourceSplit, rows: np.ndarray, params: PrepareParams, log: IntakeLog) -> Iterator[Picture]:
    """The images of `rows`, in order. Faulty ones go to `log`, which may stop the stage for them at the end."""

    def check(item: tuple[int, SourceImage]) -> _Checked | DataError:
        row, image = item
        try:
            data, notes, pixels = verify_image(
                image.read(), image.where, params.short_side_px, params.background, grey=not params.drop_duplicates
            )
            thumbnail = grey_thumbnail(pixels)
            plain = thumbnail == thumbnail[:1] * len(thumbnail) and is_plain(
                pixels if pixels.mode == "RGB" else decode_image(data, image.where)
            )
        except DataError as error:
            return error
        digest = pixel_digest(pixels) if params.drop_duplicates else None
        record = ImageRecord(data, image.path, image.label)
        return _Checked(Picture(record, row, image_digest(data), NO_HASH, digest), b"" if plain else thumbnail, notes)

    with quiet_pillow():
        outcomes = map_in_order(check, zip(rows.tolist(), split.images(rows), strict=True))
        while batch := list(islice(outcomes, HASHED_TOGETHER)):
            checked = [outcome for outcome in batch if not isinstance(outcome, DataError)]
            hashes = iter(perceptual_hashes([item.thumbnail for item in checked if item.thumbnail]).tolist())
            for outcome in batch:
                if isinstance(outcome, DataError):
                    log.bad(outcome)
                    continue
                for note in outcome.notes:
                    log.interpret(note, outcome.picture.record.path)
                yield outcome.picture._replace(hash=next(hashes)) if outcome.thumbnail else outcome.picture


class Pool:
    """Images that wait for their split: the first `HELD_BYTES` in memory, the others in one unnamed file in `folder`.

    rows_P    rows of the source that could be read, increasing
    pictures  the marks of each (`Pictures`)
    """

    def __init__(self, pictures: Iterable[Picture], folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 # closed with the object
        self._kept: list[Picture] = []
        self._ends = [0]
        held_bytes = 0
        for picture in pictures:
            held_bytes += len(picture.record.image)
            written = self._file.write(picture.record.image) if held_bytes > HELD_BYTES else 0
            self._ends.append(self._ends[-1] + written)
            self._kept.append(_without_image(picture) if written else picture)
        self.rows_P = np.array([picture.row for picture in self._kept], np.int64)
        self.pictures = pictures_of(self._kept)

    def read(self, places: np.ndarray, labels_P: np.ndarray) -> Iterator[Picture]:
        """The pictures at `places` with their labels of `labels_P`."""
        for place in places.tolist():
            picture, start = self._kept[place], self._ends[place]
            data = picture.record.image
            if not data:
                self._file.seek(start)
                data = self._file.read(self._ends[place + 1] - start)
            yield picture._replace(record=ImageRecord(data, picture.record.path, int(labels_P[place])))


def _without_image(picture: Picture) -> Picture:
    return picture._replace(record=picture.record._replace(image=b""))


def pictures_of(kept: Iterable[Picture]) -> Pictures:
    """The marks of each, as arrays."""
    marks = [(picture.digest, picture.hash) for picture in kept]
    return Pictures(np.array([digest for digest, _ in marks], np.int64), np.array([h for _, h in marks], np.uint64))


def write_split(
    file: Path, pictures: Iterable[Picture], seen: set[str], log: IntakeLog
) -> tuple[Counter[int], Pictures]:
    """Write a split; returns the images of each class, and the marks of all.

    `seen` has the digests of the pixels that came before: a picture among them is left out.
    """
    count: Counter[int] = Counter()
    kept: list[Picture] = []

    def records() -> Iterator[ImageRecord]:
        for picture in pictures:
            if picture.pixels is not None and picture.pixels in seen:
                log.pass_over("images that came before (drop_duplicates)", picture.record.path)
                continue
            if picture.pixels is not None:
                seen.add(picture.pixels)
            count[picture.record.label] += 1
            kept.append(_without_image(picture))
            yield picture.record

    write_image_records(file, records())
    return count, pictures_of(kept)
