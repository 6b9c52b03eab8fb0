"""Images of a source: what is known of each, and the pool that waits for its split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdpr.artifacts import NO_HASH, image_digest, read_images
from mdpr.data.intake import IntakeLog
from mdpr.data.pool import Pool, read_pictures_of, write_split
from mdpr.data.sources.source import FileSplit
from mdpr.params import PrepareParams

Png = Callable[..., bytes]


def split_of(folder: Path, png: Png) -> FileSplit:
    """Five pictures: one twice, as PNG and as JPEG, one of one colour, one that is none."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number, 40))
    (folder / "1.png").write_text("no picture")
    Image.open(folder / "0.png").save(folder / "3.jpg", quality=95)
    Image.new("RGB", (20, 20), "red").save(folder / "4.png")
    names = sorted(path.name for path in folder.iterdir())
    return FileSplit(folder, names, np.array([0, 1, 0, 1, 0]))


def test_each_picture_has_its_row_digest_and_hash(tmp_path: Path, png: Png) -> None:
    log = IntakeLog(tmp_path, skip_bad=True)
    split = split_of(tmp_path, png)
    found = list(read_pictures_of(split, np.arange(5), PrepareParams(), log))
    assert [picture.row for picture in found] == [0, 2, 3, 4]
    assert len(log.left_out) == 1
    assert [picture.digest for picture in found] == [image_digest(picture.record.image) for picture in found]
    assert (found[0].hash ^ found[2].hash).bit_count() <= 2
    assert (found[0].hash ^ found[1].hash).bit_count() > 10
    assert found[3].hash == NO_HASH


@pytest.mark.parametrize("held_bytes", [0, 5000, 2**20], ids=["on disk", "some in memory", "in memory"])
def test_the_pool_gives_back_what_it_was_given_with_other_labels(
    tmp_path: Path, png: Png, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr("mdpr.data.pool.HELD_BYTES", held_bytes)
    (tmp_path / "source").mkdir()
    split, log = split_of(tmp_path / "source", png), IntakeLog(tmp_path, skip_bad=True)
    found = list(read_pictures_of(split, np.arange(5), PrepareParams(), log))
    pool = Pool(iter(found), tmp_path)
    assert pool.rows_P.tolist() == [0, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    count, pictures = write_split(
        tmp_path / "x.parquet", pool.read(np.array([3, 1]), np.array([7, 8, 9, 6])), set(), log
    )
    records = list(read_images(tmp_path / "x.parquet"))
    assert [(record.image, record.label) for record in records] == [
        (found[3].record.image, 6),
        (found[1].record.image, 8),
    ]
    assert count == {6: 1, 8: 1}
    assert pictures.hash_N.tolist() == [found[3].hash, found[1].hash]
