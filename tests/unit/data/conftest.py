"""Small data sets on disk, made by the tests themselves."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdpr.artifacts import write_images, write_json

Counts = Mapping[str, tuple[int, ...]]
MakeSource = Callable[..., Path]
COUNTS: Counts = {"train": (30, 20, 15), "test": (4, 4, 4)}
NAMES = ("ant", "bee", "cat")


def encoded_picture(seed: int, side_px: int = 20) -> bytes:
    """A picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def png() -> Callable[..., bytes]:
    return encoded_picture


@pytest.fixture
def make_parquet(tmp_path: Path) -> MakeSource:
    """pool.parquet, test.parquet (val.parquet) and classes.json in a folder of their own."""

    def make(counts: Counts = COUNTS, folder: str = "parquet") -> Path:
        root = tmp_path / folder
        root.mkdir()
        write_json(root / "classes.json", {"classes": [{"index": i, "name": n} for i, n in enumerate(NAMES)]})
        for number, (split, images) in enumerate(counts.items()):
            labels = np.random.default_rng(number).permutation(np.repeat(np.arange(3), images)).tolist()
            data = [encoded_picture(1000 * number + row) for row in range(len(labels))]
            name = "pool" if split == "train" else split
            write_images(root / f"{name}.parquet", data, [f"{split}/{row}" for row in range(len(labels))], labels)
        return root

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeSource:
    """train/CLASS/NNN.png and test/CLASS/NNN.png."""

    def make(counts: Counts = COUNTS) -> Path:
        root = tmp_path / "folder"
        for number, (split, images) in enumerate(counts.items()):
            for label, (name, count) in enumerate(zip(NAMES, images, strict=True)):
                (root / split / name).mkdir(parents=True)
                for row in range(count):
                    (root / split / name / f"{row:03}.png").write_bytes(
                        encoded_picture(10_000 * number + 1000 * label + row)
                    )
        return root

    return make


@pytest.fixture
def make_csv(make_folder: MakeSource) -> MakeSource:
    """The same images, listed in images.csv; `lines` instead of all of them where given."""

    def make(lines: list[str] | None = None, counts: Counts = COUNTS, encoding: str = "utf-8") -> Path:
        root = make_folder(counts)
        listed = [
            f"{path.relative_to(root).as_posix()},{path.parent.name},{path.parent.parent.name}"
            for path in sorted(root.rglob("*.png"))
        ]
        text = "\n".join(["path,label,split", *listed] if lines is None else lines)
        (root / "images.csv").write_text(text + "\n", encoding=encoding)
        return root

    return make
