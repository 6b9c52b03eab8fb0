"""How other people's pictures and folders fare: nothing may be lost in silence, nothing may stop without a line.

python -m benchmarks.intake [--json] [--exif 6000] [--files 100000] [--images 2000]
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

ORIENTATION, ROWS_PER_STRIP = 0x0112, 0x0116
EXIF_TAGS = {0x010F: "maker", ORIENTATION: 6, 0x011A: 72.0, 0x0128: 2, 0x0132: "2020:01:01 10:00:00"}


def fuzzed_exif(count: int, seed: int = 0) -> Iterator[bytes]:
    """Sound pictures of 30 x 20 pixels (JPEG, PNG, WebP and TIFF in turn) whose EXIF blocks are damaged at random."""
    chance = random.Random(seed)  # noqa: S311
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    for tag, value in EXIF_TAGS.items():
        exif[tag] = value
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 10:00:00"
    block, tiff = exif.tobytes(), _encoded(image, "TIFF", exif)
    places = _exif_places(tiff)
    for number in range(count):
        kind = ("JPEG", "PNG", "WEBP", "TIFF")[number % 4]
        damaged = bytearray(tiff if kind == "TIFF" else block)
        for _ in range(chance.randrange(1, 9)):
            place = chance.choice(places) if kind == "TIFF" else chance.randrange(6, len(block))
            damaged[place] = chance.randrange(256)
        if kind == "TIFF":
            yield bytes(damaged)
            continue
        if chance.random() < 0.2:
            del damaged[chance.randrange(6, len(damaged)) :]
        yield _encoded(image, kind, bytes(damaged))


def _encoded(image: Image.Image, kind: str, exif: Image.Exif | bytes) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    return stream.getvalue()


def _exif_places(tiff: bytes) -> list[int]:
    """Where, in a TIFF, EXIF's tags lie: the value of the orientation, and all of those behind the pixels' own tags."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (entries,) = struct.unpack_from("<H", tiff, start)
    places: list[int] = []
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        (tag,) = struct.unpack_from("<H", tiff, entry)
        if tag == ORIENTATION:
            places += range(entry + 8, entry + 12)
        elif tag in EXIF_TAGS and tag > ROWS_PER_STRIP:
            places += range(entry + 2, entry + 12)
    return places
