"""From a file or bytes to an RGB picture: the one door for every image of prepare, validate, training and serving.

A picture is refused before it is decoded if it is too large, and never costs more than itself: whatever the decoder
raises becomes a `DataError` that names it. What had to be interpreted is reported as a note, so that it can be counted.
"""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageColor, features

from mdpr.errors import DataError, one_line, printable

MAX_PIXELS = 64_000_000
"""Width times height above which an image is refused before it is decoded (a decompression bomb)."""
MAX_SIDE_PX = 65_500  # of a JPEG; also bounds how thin a picture can be
MAX_BYTES = 256 * 2**20  # holds any uncompressed picture of MAX_PIXELS
JPEG_QUALITY = 95

# Raster formats that Pillow decodes itself; others (EPS) start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if features.check("avif") else []))
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")
)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")

Note = Literal["orientation unreadable", "transparent", "depth guessed"]
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEPTHS = (8, 10, 12, 14, 16)  # bits per grey value that cameras and scanners write
NEAR_BLACK = 16  # of 255; 12 bits stored as 16 reach at most 15
KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Decoded(NamedTuple):
    """A picture in RGB, and how its file had to be interpreted."""

    image: Image.Image
    notes: tuple[Note, ...]


class Verified(NamedTuple):
    """The bytes to keep of a picture, how its file had to be interpreted, and the picture, in RGB or grey."""

    data: bytes
    notes: tuple[Note, ...]
    image: Image.Image


def utf8_name(name: str, where: str) -> str:
    """`name`, or `DataError` if its bytes are not UTF-8 (prepared files hold text), or if it holds a zero byte."""
    if "\0" in name:
        raise DataError(f"{printable(where)}: the name holds a zero byte, which no file has: correct the list")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{printable(where)}: the name is not UTF-8: rename the file") from None
    return name


def read_file(file: Path, where: str) -> bytes:
    """The content of a regular file, or of what a link leads to.

    Raises `DataError`, before a byte is read, for anything else (FIFO, device, socket, folder) and for a file of more
    than `MAX_BYTES`; also for one that is missing or may not be read.
    """
    utf8_name(str(file), where)
    try:
        status = file.stat()
        for is_kind, kind in KINDS:
            if is_kind(status.st_mode):
                raise DataError(f"{where} is {kind}, not a regular file: remove it")
        if status.st_size > MAX_BYTES:
            raise DataError(f"{where} has {status.st_size:,} bytes, more than {MAX_BYTES:,}: remove or shrink it")
        return file.read_bytes()
    except FileNotFoundError:
        if file.is_symlink():
            raise DataError(f"{where} is a link that leads nowhere: remove it") from None
        raise DataError(f"{where} does not exist: add the file or correct its path") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}") from None


def decode_image(data: bytes, where: str, background: str = "white") -> Image.Image:
    """The picture in `data` as RGB; see `decode`."""
    return decode(data, where, background).image


def decode(data: bytes, where: str, background: str = "white", *, grey: bool = False) -> Decoded:
    """The picture in `data` as RGB, upright (EXIF orientation), the first frame of an animation.

    `where` names the image in errors (file and row). See `to_rgb` for greyscale, depth and transparency.
    Notes: the EXIF block is damaged (the pixels are used as they are); transparency was laid on `background`; grey
    values use fewer bits than are stored.
    With `grey`, a JPEG is read whole, but its colours are not computed (two thirds of the time), and a picture in 8-bit
    grey stays so: the mode is then L.
    Raises `DataError` for data that are empty, damaged, of an unknown format, or larger than `MAX_BYTES`, `MAX_PIXELS`
    or `MAX_SIDE_PX`: only the header is read before that.
    """
    if not data:
        raise DataError(f"{where} is empty (0 bytes): restore or remove the file")
    if len(data) > MAX_BYTES:
        raise DataError(f"{where} has {len(data):,} bytes, more than {MAX_BYTES:,}: scale it down")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width_px, height_px = image.size
        if width_px * height_px <= MAX_PIXELS and max(image.size) <= MAX_SIDE_PX:
            if grey and image.format == "JPEG":
                image.draft("L", None)
            deep_colour = ";16" in str(getattr(image, "tile", ""))
            image, turned = _load_upright(image)
            plain_grey = grey and image.mode == "L" and "transparency" not in image.info
            picture, notes = (image, ()) if plain_grey else _as_rgb(image, background)
            if deep_colour and 0 < int(np.asarray(picture).max()) < NEAR_BLACK:
                raise ValueError("16-bit values that use the lower bits only: save it with 8 bits")
            return Decoded(picture, (*turned, *notes))
    except Image.UnidentifiedImageError:
        raise DataError(f"{where} is not an image ({', '.join(FORMATS)}): convert or remove the file") from None
    except Exception as error:  # Pillow's readers raise whatever their parsers run into
        raise DataError(f"{where} cannot be decoded ({one_line(error)}): restore or remove the file") from None
    size = f"{where} has {width_px} x {height_px} pixels, more than"
    if width_px * height_px > MAX_PIXELS:
        raise DataError(f"{size} {MAX_PIXELS:,} in all: scale it down")
    raise DataError(f"{size} {MAX_SIDE_PX:,} on a side: cut or scale it down")


def short_side_px(data: bytes) -> int:
    """The shorter side of the picture in `data`, which `prepare` has checked. Only its header is read."""
    return min(Image.open(io.BytesIO(data), formats=FORMATS).size)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any picture of Pillow's as RGB and upright, as `decode_image` gives it.

    Greyscale is repeated over the channels. Grey values of more than 8 bits are scaled by the smallest depth of
    `DEPTHS` that holds the largest of them, floating-point ones up to 1 by 255. Transparency is composited on
    `background` (a colour's name or #RRGGBB).
    Raises `DataError` for grey values that are negative, not finite or above 16 bits, and if the pixels cannot be read.
    """
    try:
        return _as_rgb(_load_upright(image)[0], background)[0]
    except Exception as error:  # as in `decode`
        raise DataError(f"the image cannot be used ({one_line(error)}): save it anew") from None


def verify_image(
    data: bytes, where: str, short_side_px: int = 0, background: str = "white", *, grey: bool = False
) -> Verified:
    """`data` once it has been decoded; changed only if what is kept must be another picture.

    A short side larger than `short_side_px` (0: no bound) is scaled down to it (bicubic, JPEG of quality 95). A picture
    with transparency is written as it looks on `background` (PNG), so that all who read it see the same.
    `grey`: its colours are not needed, see `decode`. Raises as that does.
    """
    image, notes = decode(data, where, background, grey=grey and not short_side_px)
    short_px = min(image.size)
    stream = io.BytesIO()
    if short_side_px and short_px > short_side_px:
        width_px, height_px = (round(side_px * short_side_px / short_px) for side_px in image.size)
        image = image.resize((width_px, height_px), Image.Resampling.BICUBIC)
        image.save(stream, "JPEG", quality=JPEG_QUALITY)
    elif "transparent" in notes:
        image.save(stream, "PNG")
    else:
        return Verified(data, notes, image)
    return Verified(stream.getvalue(), notes, image)


def pixel_digest(image: Image.Image) -> str:
    """Of an RGB picture: equal if its size and pixels are, whatever the format of the file."""
    return hashlib.sha256(f"{image.width}x{image.height}\0".encode() + image.tobytes()).hexdigest()


def is_plain(image: Image.Image) -> bool:
    """Whether an RGB picture is of one colour."""
    return all(low == high for low, high in image.getextrema())  # type: ignore[misc] # a pair per channel


def is_image(head: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of an image, whatever its suffix."""
    if head.startswith(SIGNATURES):
        return True
    return (head[:4], head[8:12]) == (b"RIFF", b"WEBP") or ("AVIF" in FORMATS and head[4:12] == b"ftypavif")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings by Pillow about large images and damaged metadata: both are handled here. Main thread only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _load_upright(image: Image.Image) -> tuple[Image.Image, tuple[Note, ...]]:
    """The pixels, turned as EXIF says; a damaged EXIF block costs the orientation only."""
    if image.format == "TIFF":  # its tags are read before the pixels
        orientation = _orientation(image)
        image.getexif = Image.Exif  # type: ignore[method-assign] # load() would read damaged sub-folders again
        image.load()
    else:
        image.load()
        orientation = _orientation(image)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    return image, () if orientation is not None else ("orientation unreadable",)


def _orientation(image: Image.Image) -> int | None:
    """EXIF's orientation; 1 if there is none, None if the block cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `decode`
        return None
    return value if isinstance(value, int) else None


def _as_rgb(image: Image.Image, background: str) -> tuple[Image.Image, tuple[Note, ...]]:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, ()
    notes: list[Note] = []
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow would cut off, not scale
        values = np.asarray(image)
        key = image.info.get("transparency")
        image, guessed = _scaled(values)
        if guessed:
            notes.append("depth guessed")
        if isinstance(key, int):
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            canvas = Image.new("RGBA", image.size, ImageColor.getrgb(background))
            canvas.alpha_composite(image)
            image = canvas
            notes.append("transparent")
    return image.convert("RGB"), tuple(notes)


def _scaled(values: np.ndarray[Any, Any]) -> tuple[Image.Image, bool]:
    """Grey values as 8 bits, and whether their range had to be read off them."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high < 2 ** DEPTHS[-1]):  # also if one is not a number
        raise ValueError(f"grey values from {low:g} to {high:g}, expected 0 to 65535: save it with 8 or 16 bits")
    if values.dtype.kind == "f" and high <= 1:
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)), False
    depth = next(bits for bits in DEPTHS if high < 2**bits)
    levels = values.astype(np.int64) >> (depth - DEPTHS[0])
    return Image.fromarray(levels.astype(np.uint8)), depth != DEPTHS[-1]
