"""A split read one image at a time: the same as reading it whole, in any order, in other processes."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mdpr.artifacts import ImageFile, ImageRecord, read_images, write_image_records
from mdpr.artifacts import image_tables as images_module
from mdpr.errors import ArtifactError

RNG = np.random.default_rng(0)


def records(count: int, sizes: tuple[int, ...] = (1, 7, 500, 20_000)) -> list[ImageRecord]:
    return [ImageRecord(RNG.bytes(sizes[row % len(sizes)]), f"folder é/{row}.png", row % 3) for row in range(count)]


def test_every_row_is_the_record_that_was_written(tmp_path: Path) -> None:
    written = records(2300)
    write_image_records(tmp_path / "x.parquet", written)
    assert pq.read_metadata(tmp_path / "x.parquet").num_row_groups == 3
    file = read_images(tmp_path / "x.parquet")
    assert len(file) == 2300
    assert list(file) == written
    assert file[1999] == written[1999]
    assert file.labels_N.dtype == np.int64


def test_repeated_and_tiny_images_are_told_apart_by_place(tmp_path: Path) -> None:
    written = [ImageRecord(data, "", 0) for data in (b"a", b"", b"a", b"aa", b"\x01\0\0\0a", b"a")]
    write_image_records(tmp_path / "x.parquet", written)
    assert list(read_images(tmp_path / "x.parquet")) == written


def test_a_row_group_ends_before_large_images_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "ROW_GROUP_BYTES", 1000)
    written = records(20, sizes=(400,))
    write_image_records(tmp_path / "x.parquet", written)
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3] * 6 + [2]
    assert list(read_images(tmp_path / "x.parquet")) == written


def test_processes_read_side_by_side_forked_or_not(tmp_path: Path) -> None:
    written = records(200)
    write_image_records(tmp_path / "x.parquet", written)
    file = read_images(tmp_path / "x.parquet")
    assert list(pickle.loads(pickle.dumps(file))) == written  # noqa: S301 - made here
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(file.__getitem__, range(200), chunksize=7) == written


def test_an_image_that_is_not_there_is_empty(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"one"}, {"bytes": None}, None], pa.struct([("bytes", pa.binary())]))
    table = pa.table({"image": image, "label": pa.array([1, 0, 1], pa.int8())})
    pq.write_table(table, tmp_path / "x.parquet", compression="none", use_dictionary=False)
    file: ImageFile = read_images(tmp_path / "x.parquet")
    assert list(file) == [ImageRecord(b"one", "", 1), ImageRecord(b"", "", 0), ImageRecord(b"", "", 1)]


def test_compressed_pages_are_refused(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"one" * 100}], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": image, "label": [1]}), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(ArtifactError, match=r"x\.parquet has compressed or encoded pages: write it with"):
        read_images(tmp_path / "x.parquet")


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    write_image_records(tmp_path / "x.parquet", records(100))
    os.truncate(tmp_path / "x.parquet", 5000)
    with pytest.raises(ArtifactError, match=r"x\.parquet is not a readable Parquet file"):
        read_images(tmp_path / "x.parquet")


def test_hugging_face_opens_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="needs the library datasets (pip install 'mdpr[hub]')")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    written = records(30)
    write_image_records(tmp_path / "x.parquet", written)
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    assert [(row["image"]["bytes"], row["image"]["path"], row["label"]) for row in raw] == written
