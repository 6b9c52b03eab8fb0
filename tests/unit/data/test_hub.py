"""Data sets of the Hugging Face library, made here: splits, labels that are missing, and what is said about them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mdpr.data.sources import Place, Source, open_source
from mdpr.errors import DataError
from mdpr.params import PrepareParams

MakeFolder = Callable[..., Path]


def opened(kind: str, root: Path, **settings: object) -> Source:
    params = PrepareParams.model_validate({"source": kind, "root": str(root), **settings})
    return open_source(kind, Place.of(params))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("datasets", reason="needs the library datasets (pip install 'mdpr[hub]')")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def test_a_hub_data_set_is_the_folder_it_was_made_of(hub: Path, make_folder: MakeFolder) -> None:
    folder = make_folder({"train": (3, 4, 5), "val": (1, 1, 1), "test": (2, 2, 2)})
    source, same = opened("huggingface", hub, hub_name=str(folder)), opened("folder", folder)
    assert source.classes == same.classes
    for split, expected in ((source.pool, same.pool), (source.val, same.val), (source.test, same.test)):
        assert split is not None
        assert expected is not None
        everything = np.arange(len(split.labels_N))
        assert sorted((image.read(), image.label) for image in split.images(everything)) == sorted(
            (image.read(), image.label) for image in expected.images(everything)
        )


def test_a_hub_data_set_that_is_not_there_is_named(hub: Path) -> None:
    with pytest.raises(DataError, match=r"prepare\.hub_name = \./no/such: cannot be loaded \(.*\): check name"):
        opened("huggingface", hub, hub_name="./no/such")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the library datasets: pip install 'mdpr\[hub\]'"):
        opened("huggingface", tmp_path, hub_name="x/y")


def write_hub(folder: Path, png: Callable[..., bytes], **labels: list[int | None]) -> Path:
    """A folder of Parquet files with the columns image and label, a file per split, classes a and b."""
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    folder.mkdir()
    for number, (split, values) in enumerate(labels.items()):
        images = [{"bytes": png(100 * number + row), "path": f"{row}.png"} for row in range(len(values))]
        table = pa.table({"image": images, "label": pa.array(values, pa.int64())})
        declared = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(declared), folder / f"{split}.parquet")
    return folder


LABELS: list[int | None] = [0] * 4 + [1] * 4


def test_a_split_without_labels_names_the_way_on(hub: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    name = str(write_hub(tmp_path / "set", png, train=LABELS, validation=LABELS, test=[-1] * 8))
    with pytest.raises(DataError, match=r"set test has no labels .* prepare\.test_from to val or share"):
        opened("huggingface", hub, hub_name=name)
    assert opened("huggingface", hub, hub_name=name, test_from="val").test is None  # prepare makes it of val


@pytest.mark.parametrize(("label", "message"), [(-1, "has label -1"), (None, "has no label"), (2, "has label 2")])
def test_a_row_without_a_label_is_named_or_left_out(
    label: int | None, message: str, hub: Path, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    name = str(write_hub(tmp_path / "set", png, train=[*LABELS[:-1], label]))
    with pytest.raises(DataError, match=f"set train row 7 {message}"):
        opened("huggingface", hub, hub_name=name)
    params = PrepareParams(source="huggingface", root=str(hub), hub_name=name, skip_bad=True)
    place = Place.of(params)
    assert open_source("huggingface", place).pool.labels_N.tolist() == [*LABELS[:-1], -1]
    assert len(place.log.left_out) == 1


def test_the_copy_is_never_put_into_the_data_set(hub: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    name = write_hub(tmp_path / "set", png, train=LABELS)
    with pytest.raises(DataError, match=r"prepare\.root = .* would be part of"):
        opened("huggingface", tmp_path, hub_name=str(name))
    assert [path.name for path in name.iterdir()] == ["train.parquet"]
