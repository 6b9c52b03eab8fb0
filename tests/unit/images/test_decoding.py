"""The door for images: what opens, what it becomes, and what is refused."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from benchmarks.intake import fuzzed_exif
from PIL import Image, ImageOps

from mdpr.errors import DataError
from mdpr.images.decoding import (
    FORMATS,
    IMAGE_SUFFIXES,
    decode,
    decode_image,
    is_image,
    pixel_digest,
    quiet_pillow,
    read_file,
    to_rgb,
    verify_image,
)

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
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_rgb_stays_as_it_is() -> None:
    assert np.array_equal(decoded(encode(Image.fromarray(PIXELS))), PIXELS)


def test_greyscale_is_repeated_over_the_channels() -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    assert np.array_equal(decoded(encode(grey)), np.repeat(PIXELS[..., :1], 3, axis=2))


def test_sixteen_bit_greyscale_is_scaled_not_cut_off() -> None:
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    assert np.array_equal(decoded(encode(deep))[..., 0], PIXELS[..., 0])
    assert decode(encode(deep), "x").notes == ()


GREY = np.full((6, 9), 88)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        *[(GREY.astype(np.uint16) << bits, kind) for bits in (2, 4, 6, 8) for kind in ("PNG", "TIFF")],
        *[(GREY.astype(np.int32) << bits, "TIFF") for bits in (0, 2, 4, 6, 8)],
        (GREY.astype(np.float32), "TIFF"),
        (GREY.astype(np.float32) / 255, "TIFF"),
    ],
)
def test_grey_values_are_scaled_by_the_depth_they_hold(values: np.ndarray, kind: str) -> None:
    assert (decoded(encode(Image.fromarray(values), kind)) == 88).all()


def test_a_guessed_depth_is_noted_and_a_declared_one_is_not() -> None:
    assert decode(encode(Image.fromarray(GREY.astype(np.uint16) << 4)), "x").notes == ("depth guessed",)
    pgm = b"P5 9 6 4095\n" + (GREY << 4).astype(">u2").tobytes()
    assert (decoded(pgm) == 88).all()
    assert decode(pgm, "x").notes == ()


@pytest.mark.parametrize(
    "values",
    [GREY.astype(np.int32) - 100, GREY.astype(np.int32) * 100_000, np.full((6, 9), np.nan, np.float32)],
    ids=["negative", "32 bits", "not a number"],
)
def test_grey_values_without_a_known_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"^x cannot be decoded \(grey values from .* save it with 8 or 16 bits\)"):
        decode_image(encode(Image.fromarray(values), "TIFF"), "x")


@pytest.mark.parametrize(("largest", "refused"), [(4095, True), (65535, False), (0, False)])
def test_colour_that_would_come_out_near_black_is_refused(largest: int, refused: bool) -> None:
    """Pillow keeps the upper byte of 16-bit colour: 12 bits would become 0 to 15."""
    row = b"\0" + struct.pack(">27H", *[largest] * 27)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 9, 6, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 6)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    if refused:
        with pytest.raises(DataError, match="16-bit values that use the lower bits only"):
            decode_image(data, "x")
    else:
        assert (decoded(data) == largest >> 8).all()


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("#204060", 32)])
def test_transparency_is_laid_on_the_background(background: str, level: int) -> None:
    alpha = np.full((6, 9), 255, np.uint8)
    alpha[:, :4], alpha[:, 4] = 0, 128
    image, notes = decode(encode(Image.fromarray(np.dstack([PIXELS, alpha]))), "x", background)
    shown = np.asarray(image).astype(int)
    assert (shown[:, :4, 0] == level).all()
    assert np.abs(shown[:, 4, 0] - (PIXELS[:, 4, 0] * 128.0 + level * 127) / 255).max() <= 1
    assert np.array_equal(shown[:, 5:], PIXELS[:, 5:])
    assert notes == ("transparent",)


@pytest.mark.parametrize("kind", ["P", "L", "LA", "1", "RGB", "I;16"])
def test_every_kind_of_transparency_is_laid_on_the_background(kind: str) -> None:
    """Half of the picture is one value, which is transparent; the other half stays as it is."""
    grey = np.full((6, 8), 40, np.uint8)
    grey[:, 4:] = 200
    image = Image.fromarray(grey)
    options: dict[str, object] = {"transparency": 40}
    if kind == "LA":
        image.putalpha(Image.fromarray(np.where(grey == 40, 0, 255).astype(np.uint8)))
        options = {}
    elif kind == "1":
        image, options = Image.fromarray(grey > 100), {"transparency": 0}
    elif kind == "RGB":
        image, options = image.convert("RGB"), {"transparency": (40, 40, 40)}
    elif kind == "P":
        image = image.convert("P")
        options = {"transparency": image.getpixel((0, 0))}
    elif kind == "I;16":
        image, options = Image.fromarray(grey.astype(np.uint16) * 257), {"transparency": 40 * 257}
    shown, notes = decode(encode(image, **options), "x", "#00ff00")
    assert (np.asarray(shown)[:, :4] == (0, 255, 0)).all()
    assert (np.asarray(shown)[:, 4:] == (255 if kind == "1" else 200)).all()
    assert notes == ("transparent",)


def test_an_alpha_channel_that_hides_nothing_changes_nothing() -> None:
    alpha = np.dstack([PIXELS, np.full((6, 9), 255, np.uint8)])
    assert decode(encode(Image.fromarray(alpha)), "x").notes == ()
    assert np.array_equal(decoded(encode(Image.fromarray(alpha))), PIXELS)
    palette = Image.fromarray(PIXELS).quantize(8)
    assert np.array_equal(decoded(encode(palette, transparency=b"\xff\xff")), np.asarray(palette.convert("RGB")))


def test_cmyk_becomes_rgb() -> None:
    grey = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
    assert np.abs(decoded(encode(grey, "JPEG"))[0, 0].astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(PIXELS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decoded(data), np.asarray(expected))
    assert expected.size == ((9, 6) if orientation < 5 else (6, 9))


@pytest.mark.parametrize("tag", [0x010F, 0x0110, 0x013B, 0x0132], ids=["Make", "Model", "Artist", "DateTime"])
@pytest.mark.parametrize("kind", [1, 5, 12], ids=["BYTE", "RATIONAL", "DOUBLE"])
def test_a_text_tag_of_another_type_does_not_cost_the_orientation(tag: int, kind: int) -> None:
    entries = struct.pack("<HHII", tag, kind, 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<III", 0, 1, 2)
    for container in ("JPEG", "PNG", "WEBP"):
        data = encode(Image.fromarray(PIXELS), container, exif=block)
        assert decode(data, "x").image.size == (6, 9)


@pytest.mark.parametrize("block", [b"", b"\0\x08\0\x02\x01\x12\0\x03", b"II*\0", b"MM\0*\0\0\0\xff"])
@pytest.mark.parametrize("behind_the_pixels", [False, True])
def test_a_broken_block_costs_the_orientation_only(block: bytes, behind_the_pixels: bool) -> None:
    png = encode(Image.fromarray(PIXELS))
    place = len(png) - 12 if behind_the_pixels else 33  # before IEND, or behind IHDR
    image, notes = decode(png[:place] + png_chunk(b"eXIf", block) + png[place:], "x")
    assert np.array_equal(np.asarray(image), PIXELS)
    assert notes in ((), ("orientation unreadable",))


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
def test_no_damage_to_an_exif_block_costs_a_picture() -> None:
    assert sum(1 for data in fuzzed_exif(400) if decode(data, "x").image.size in ((30, 20), (20, 30))) == 400


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a/b\.png \(row 3\) is empty \(0 bytes\)"),
        (b"no image at all", r"a/b\.png \(row 3\) is not an image"),
        (encode(Image.fromarray(PIXELS))[:-40], r"a/b\.png \(row 3\) cannot be decoded"),
        (encode(Image.fromarray(PIXELS), "JPEG")[:-100], r"a/b\.png \(row 3\) cannot be decoded"),
        (png_header(12_000, 10_000), r"a/b\.png \(row 3\) has 12000 x 10000 pixels"),
        (png_header(60_000, 60_000), r"a/b\.png \(row 3\) cannot be decoded"),
        (png_header(1_000_000, 1), r"a/b\.png \(row 3\) has 1000000 x 1 pixels, more than 65,500 on a side"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not an image"),
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "120 MP", "3.6 GP", "thin", "eps"],
)
def test_bad_images_are_named(data: bytes, message: str) -> None:
    with quiet_pillow(), pytest.raises(DataError, match=message):
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


def test_a_name_that_no_file_can_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="zero byte"):
        read_file(tmp_path / "a\0b.png", "list.csv line 2")


def test_bounds_of_bytes_and_pixels_are_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(PIXELS))
    monkeypatch.setattr("mdpr.images.decoding.MAX_PIXELS", 53)
    with pytest.raises(DataError, match="has 9 x 6 pixels, more than 53 in all"):
        decode_image(data, "x")
    monkeypatch.setattr("mdpr.images.decoding.MAX_BYTES", len(data) - 1)
    with pytest.raises(DataError, match=f"has {len(data)} bytes, more than {len(data) - 1}"):
        decode_image(data, "x")


def test_whatever_the_decoder_raises_is_an_error_of_that_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(DataError, match=r"^x cannot be decoded "):
        decode_image(encode(Image.fromarray(PIXELS[..., 0])), "x")


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_in_grey_is_read_as_strictly_as_in_colour(progressive: bool) -> None:
    chance = random.Random(0)  # noqa: S311
    picture = Image.fromarray(PIXELS).resize((90, 60))
    whole = encode(picture, "JPEG", quality=90, progressive=progressive)
    grey = decode(whole, "x", grey=True).image
    assert grey.mode == "L"
    assert np.abs(np.asarray(decode_image(whole, "x").convert("L"), int) - np.asarray(grey, int)).max() <= 2
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole[: chance.randrange(1, len(whole) + 1)] if chance.random() < 0.3 else whole)
        for _ in range(chance.randrange(4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        said = []
        for only_grey in (False, True):
            try:
                decode(bytes(damaged), "x", grey=only_grey)
                said.append("")
            except DataError as error:
                said.append(str(error))
        assert said[0] == said[1]
        refused += bool(said[0])
    assert 50 < refused < 250


def test_grey_is_kept_and_colour_computed_only_if_it_is_needed() -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    assert verify_image(encode(grey), "x", grey=True).image.mode == "L"
    assert verify_image(encode(grey, transparency=3), "x", grey=True).image.mode == "RGB"
    assert verify_image(encode(Image.fromarray(PIXELS), "JPEG"), "x", 3, grey=True).image.mode == "RGB"


def test_what_is_kept_of_a_picture() -> None:
    plain = encode(Image.fromarray(PIXELS))
    assert verify_image(plain, "x", 6)[:2] == (plain, ())
    assert Image.open(io.BytesIO(verify_image(plain, "x", 3).data)).size == (4, 3)
    clear = encode(Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]])))
    kept = verify_image(clear, "x", background="black")
    assert np.array_equal(decoded(kept.data), np.asarray(decode_image(clear, "x", "black")))
    assert pixel_digest(kept.image) == pixel_digest(verify_image(kept.data, "x").image)


def test_any_picture_of_pillow_goes_through_the_same_door() -> None:
    clear = Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]))
    assert np.array_equal(np.asarray(to_rgb(clear, "gray")), np.asarray(decode_image(encode(clear), "x", "gray")))
    assert to_rgb(Image.fromarray(PIXELS)).mode == "RGB"


def test_content_decides_what_an_image_is() -> None:
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", *(["AVIF"] if "AVIF" in FORMATS else [])):
        assert is_image(encode(Image.fromarray(PIXELS), kind)[:16]), kind
    assert not is_image(b"hello, this is no image"[:16])
    assert not is_image(b"")
    assert {".jfif", ".jpe", ".pgm", ".mpo", ".webp"} <= IMAGE_SUFFIXES


def test_a_picture_that_pillow_opened_is_turned_and_a_broken_tag_costs_nothing() -> None:
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    block += struct.pack("<HHII", 0x010F, 5, 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    data = encode(Image.fromarray(PIXELS), "PNG", exif=block + struct.pack("<III", 0, 1, 2))
    assert np.array_equal(np.asarray(to_rgb(Image.open(io.BytesIO(data)))), np.rot90(PIXELS, -1))
    with pytest.raises(DataError, match="the image cannot be used"):
        to_rgb(Image.open(io.BytesIO(data[:-40])))
    with pytest.raises(DataError, match="grey values from -1 to -1"):
        to_rgb(Image.fromarray(np.full((3, 3), -1, np.int32)))
