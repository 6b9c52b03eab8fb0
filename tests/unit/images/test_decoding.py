"""The door for images: what opens, what it becomes, and what is refused."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mdpr.errors import DataError
from mdpr.images.decoding import FORMATS, decode_image, quiet_about_large_images

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(data, "x.png")
    assert image.mode == "RGB"
    return np.asarray(image)


def png_header(width_px: int, height_px: int) -> bytes:
    """A PNG that promises this many pixels and holds none."""
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_rgb_stays_as_it_is() -> None:
    assert np.array_equal(decoded(encode(Image.fromarray(PIXELS))), PIXELS)


def test_greyscale_is_repeated_over_the_channels() -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    assert np.array_equal(decoded(encode(grey)), np.repeat(PIXELS[..., :1], 3, axis=2))


def test_sixteen_bit_greyscale_is_scaled_not_cut_off() -> None:
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    assert np.array_equal(decoded(encode(deep))[..., 0], PIXELS[..., 0])


def test_transparency_is_dropped_as_clip_does() -> None:
    alpha = np.dstack([PIXELS, np.full((6, 9), 128, np.uint8)])
    assert np.array_equal(decoded(encode(Image.fromarray(alpha))), PIXELS)


def test_palette_with_transparency() -> None:
    palette = Image.fromarray(PIXELS).quantize(8)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decoded(encode(palette, transparency=b"\x00\xff")), expected)


def test_cmyk_becomes_rgb() -> None:
    grey = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
    assert np.abs(decoded(encode(grey, "JPEG"))[0, 0].astype(int) - (200, 100, 50)).max() <= 4


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = encode(Image.fromarray(PIXELS), exif=exif)
    assert np.array_equal(decoded(data), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a/b\.png \(row 3\) is empty \(0 bytes\)"),
        (b"no image at all", r"a/b\.png \(row 3\) is not an image"),
        (encode(Image.fromarray(PIXELS))[:-40], r"a/b\.png \(row 3\) cannot be decoded"),
        (encode(Image.fromarray(PIXELS), "JPEG")[:-100], r"a/b\.png \(row 3\) cannot be decoded"),
        (png_header(12_000, 10_000), r"a/b\.png \(row 3\) has 12000 x 10000 pixels"),
        (png_header(60_000, 60_000), r"a/b\.png \(row 3\) cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not an image"),
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "120 MP", "3.6 GP", "eps"],
)
def test_bad_images_are_named(data: bytes, message: str) -> None:
    with quiet_about_large_images(), pytest.raises(DataError, match=message):
        decode_image(data, "a/b.png (row 3)")


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_never_another_error(kind: str) -> None:
    chance = random.Random(kind)  # noqa: S311
    whole = encode(Image.fromarray(PIXELS), kind)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole[: chance.randrange(1, len(whole) + 1)])
        for _ in range(chance.randrange(4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            decode_image(bytes(damaged), "x")
        except DataError:
            refused += 1
    assert refused > 100
