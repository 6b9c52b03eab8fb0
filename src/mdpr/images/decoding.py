"""Encoded bytes to an RGB picture, the one door for every image: prepare, validate, training and serving."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from mdpr.errors import DataError

MAX_PIXELS = 64_000_000
"""Width times height above which an image is refused before it is decoded (a decompression bomb)."""

JPEG_QUALITY = 95

# Raster formats that Pillow decodes itself; others (EPS) start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What Pillow's readers raise on damaged files, found by damaging files at random (tests/unit/data/test_images.py).
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode_image(data: bytes, where: str) -> Image.Image:
    """The picture in `data` as RGB, upright (EXIF orientation applied), the first frame of an animation.

    `where` names the image in errors (file and row). Greyscale is repeated over the channels, 16-bit
    greyscale scaled to 8 bit, transparency dropped as CLIP's own preprocessing does.
    Raises `DataError` where the data are empty, damaged, of an unknown format or above `MAX_PIXELS`.
    """
    if not data:
        raise DataError(f"{where} is empty (0 bytes): restore or remove the file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header alone
        width_px, height_px = image.size
        if width_px * height_px <= MAX_PIXELS:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # copies nothing where the image is upright
            return _to_rgb(image)
    except Image.UnidentifiedImageError:
        raise DataError(f"{where} is not an image ({', '.join(FORMATS)}): convert or remove the file") from None
    except DAMAGED as error:
        raise DataError(f"{where} cannot be decoded ({error}): restore or remove the file") from None
    raise DataError(f"{where} has {width_px} x {height_px} pixels, more than {MAX_PIXELS:,} in all: scale it down")


def verify_image(data: bytes, where: str, short_side_px: int = 0) -> bytes:
    """`data` once it has been decoded; or, where its short side is larger than `short_side_px`, scaled down to
    that (bicubic) as JPEG of quality 95. 0 leaves every size as it is. Raises as `decode_image` does."""
    image = decode_image(data, where)
    short_px = min(image.size)
    if not short_side_px or short_px <= short_side_px:
        return data
    width_px, height_px = (round(side_px * short_side_px / short_px) for side_px in image.size)
    stream = io.BytesIO()
    image.resize((width_px, height_px), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


@contextmanager
def quiet_about_large_images() -> Iterator[None]:
    """No warnings by Pillow of large images: `decode_image` refuses them itself. Main thread only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would cut off, not scale
        levels = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
