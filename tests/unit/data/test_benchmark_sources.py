"""The public benchmarks as their owners publish them: archives, list files, the Hub. Small ones, made here."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdpr.data.class_list import shipped_class_list
from mdpr.data.sources import Place, Source, open_source
from mdpr.data.sources import cifar as cifar_module
from mdpr.data.sources.source import SourceSplit
from mdpr.errors import DataError
from mdpr.params import PrepareParams

BATCHES = {f"data_batch_{number}": 12 for number in range(1, 6)} | {"test_batch": 20}
MakeFolder = Callable[..., Path]


def opened(kind: str, root: Path, **settings: object) -> Source:
    params = PrepareParams.model_validate({"source": kind, "root": str(root), **settings})
    return open_source(kind, Place.of(params))


def pixels_of(split: SourceSplit, row: int) -> np.ndarray:
    (image,) = split.images(np.array([row]))
    return np.asarray(Image.open(io.BytesIO(image.read())))


def random_batch(number: int, count: int) -> tuple[np.ndarray, list[int]]:
    """Pixels (N, 3072), channels first as the archive has them, and labels."""
    random = np.random.default_rng(number)
    return random.integers(0, 256, (count, 3072), dtype=np.uint8), random.integers(0, 10, count).tolist()


def pickled(number: int, count: int, **entries: object) -> bytes:
    pixels, labels = random_batch(number, count)
    batch = {"batch_label": f"batch {number}", "labels": labels, "data": pixels, "filenames": ["a.png"] * count}
    return pickle.dumps(batch | entries, protocol=2)


def write_archive(root: Path, name: str, members: dict[str, bytes]) -> None:
    with tarfile.open(root / name, "w:gz") as tar:
        for member, data in members.items():
            header = tarfile.TarInfo(member)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    batches = {
        f"cifar-10-batches-py/{name}": pickled(number, count) for number, (name, count) in enumerate(BATCHES.items())
    }
    write_archive(tmp_path, "cifar-10-python.tar.gz", batches)
    return tmp_path


def test_cifar10_in_the_order_of_the_archive(cifar10: Path) -> None:
    source = opened("cifar10", cifar10)
    assert [item.name for item in source.classes][:2] == ["airplane", "automobile"]
    expected = [random_batch(number, count) for number, count in enumerate(BATCHES.values())]
    assert source.pool.labels_N.tolist() == [label for _, labels in expected[:5] for label in labels]
    assert source.test is not None
    assert source.test.labels_N.tolist() == expected[5][1]
    for row, (number, place) in {0: (0, 0), 11: (0, 11), 12: (1, 0), 59: (4, 11)}.items():
        pixels = expected[number][0][place].reshape(3, 32, 32).transpose(1, 2, 0)
        assert np.array_equal(pixels_of(source.pool, row), pixels)


def test_cifar10_unpacked_is_the_same(cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(cifar10 / "cifar-10-python.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    packed, unpacked = opened("cifar10", cifar10), opened("cifar10", folder)
    assert np.array_equal(packed.pool.labels_N, unpacked.pool.labels_N)
    assert np.array_equal(pixels_of(packed.pool, 30), pixels_of(unpacked.pool, 30))


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    members = {}
    for number, name in enumerate(("train", "test")):
        pixels, _ = random_batch(number, 6)
        fine = [99, 1, 2, 3, 4, 5]
        content = {"filenames": ["x"] * 6, "fine_labels": fine, "coarse_labels": [7] * 6, "data": pixels}
        members[f"cifar-100-python/{name}"] = pickle.dumps(content, protocol=2)
    write_archive(tmp_path, "cifar-100-python.tar.gz", members)
    source = opened("cifar100", tmp_path)
    assert len(source.classes) == 100
    assert source.pool.labels_N.tolist() == [99, 1, 2, 3, 4, 5]


class Harmful:
    """What a pickle from elsewhere might hold: unpickled, it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.file), "w"))


def test_nothing_in_an_archive_is_run(cifar10: Path) -> None:
    written = cifar10 / "written"
    members = {
        f"cifar-10-batches-py/{name}": pickled(number, count, extra=Harmful(written))
        for number, (name, count) in enumerate(BATCHES.items())
    }
    write_archive(cifar10, "cifar-10-python.tar.gz", members)
    with pytest.raises(DataError, match=r"data_batch_1 is damaged \(it names io\.open\)"):
        opened("cifar10", cifar10)
    assert not written.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a pickle", r"test_batch is damaged"),
        (pickle.dumps({"data": b"x" * 3072, "labels": [1, 2]}, protocol=2), "test_batch is not a batch of cifar-10"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, protocol=2), "is not a batch of"),
    ],
)
def test_a_damaged_batch_is_named(data: bytes, message: str, cifar10: Path) -> None:
    (cifar10 / "cifar-10-batches-py").mkdir()
    for number, (name, count) in enumerate(BATCHES.items()):
        (cifar10 / "cifar-10-batches-py" / name).write_bytes(pickled(number, count))
    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(data)
    with pytest.raises(DataError, match=message):
        opened("cifar10", cifar10)


def test_a_damaged_archive_and_a_missing_network_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision", reason="fetching the archive needs torchvision")
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(DataError, match=r"has no cifar-10-python\.tar\.gz and it cannot be fetched \(.*put it there"):
        opened("cifar10", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is not the original archive"):
        opened("cifar10", tmp_path)


def test_archives_are_torchvision_s() -> None:
    datasets = pytest.importorskip("torchvision.datasets", reason="compares with torchvision's table")
    for archive, stock in ((cifar_module.CIFAR10, datasets.CIFAR10), (cifar_module.CIFAR100, datasets.CIFAR100)):
        assert (archive.name, archive.folder) == (stock.filename, stock.base_folder)
        assert list(archive.train) == [name for name, _ in stock.train_list]
        assert archive.test == stock.test_list[0][0]


# --- list files -------------------------------------------------------------------------------------------


def write_list(file: Path, *lines: str, end: str = "\n") -> None:
    file.write_bytes((end.join(lines) + end).encode())


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_imagenet_lt(end: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    images, lists = make_folder(), tmp_path / "lists"
    lists.mkdir()
    write_list(lists / "ImageNet_LT_train.txt", "train/ant/000.png 1", "train/bee/001.png 999", end=end)
    write_list(lists / "ImageNet_LT_val.txt", "train/cat/002.png 0", end=end)
    write_list(lists / "ImageNet_LT_test.txt", "test/cat/000.png 0", "test/cat/001.png 5", end=end)
    source = opened("imagenet_lt", lists, image_root=str(images))
    assert (len(source.classes), source.classes[0].name) == (1000, "tench")
    assert source.pool.labels_N.tolist() == [1, 999]
    assert source.val is not None
    assert source.val.labels_N.tolist() == [0]
    (image,) = source.pool.images(np.array([1]))
    assert image.read() == (images / "train/bee/001.png").read_bytes()
    assert image.where.endswith("train/bee/001.png (ImageNet_LT_train.txt line 2)")


def test_places_lt_has_the_shipped_names(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_list(tmp_path / f"Places_LT_{split}.txt", "a with a space.jpg 364")
    source = opened("places_lt", tmp_path)
    assert len(source.classes) == 365
    (image,) = source.pool.images(np.array([0]))
    assert image.path == "a with a space.jpg"


def test_inat2018_takes_the_names_of_the_set_and_its_val_as_test(tmp_path: Path) -> None:
    names = [{"id": 1, "name": "Apis mellifera"}, {"id": 0, "name": "Bombus terrestris"}]
    (tmp_path / "categories.json").write_text(json.dumps(names))
    write_list(tmp_path / "iNaturalist18_train.txt", "a.jpg 0", "b.jpg 1")
    write_list(tmp_path / "iNaturalist18_val.txt", "c.jpg 1")
    source = opened("inat2018", tmp_path)
    assert [item.name for item in source.classes] == ["Bombus terrestris", "Apis mellifera"]
    assert source.val is None
    assert source.test is not None
    assert source.test.labels_N.tolist() == [1]
    (tmp_path / "categories.json").write_text('[{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]')
    with pytest.raises(DataError, match=r"categories\.json: ids must run 0, 1, 2"):
        opened("inat2018", tmp_path)
    (tmp_path / "categories.json").unlink()
    with pytest.raises(DataError, match=r"categories\.json is missing: it comes with iNaturalist 2018"):
        opened("inat2018", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.jpg", r"Places_LT_train\.txt line 2: 'b\.jpg' must be a path, a space and a label"),
        ("b.jpg one", "line 2: 'b.jpg one' must be a path"),
        ("b.jpg 365", r"line 2: label '365' is not in the class list"),
        ("../b.jpg 3", r"line 2: path '\.\./b\.jpg' leads out of"),
        ("/etc/b.jpg 3", r"line 2: path '/etc/b\.jpg' leads out of"),
        ("x/../../b.jpg 3", "leads out of"),
    ],
)
def test_mistakes_in_a_list_are_named_or_skipped_and_listed(line: str, message: str, tmp_path: Path) -> None:
    write_list(tmp_path / "Places_LT_train.txt", "a.jpg 0", line, "c.jpg 2")
    for split in ("val", "test"):
        write_list(tmp_path / f"Places_LT_{split}.txt", "a.jpg 0")
    with pytest.raises(DataError, match=message):
        opened("places_lt", tmp_path)
    place = Place.of(PrepareParams(source="places_lt", root=str(tmp_path), skip_bad=True))
    if "must be a path" in message:  # not a row at all: the list itself is wrong
        with pytest.raises(DataError, match=message):
            open_source("places_lt", place)
        return
    assert open_source("places_lt", place).pool.labels_N.tolist() == [0, 2]
    (listed,) = place.log.left_out
    assert listed.startswith("Places_LT_train.txt line 2: ")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Places_LT_train\.txt is missing: put the benchmark's list files"):
        opened("places_lt", tmp_path)
    with pytest.raises(DataError, match=r"prepare\.image_root = .*/none: there is no such folder"):
        opened("places_lt", tmp_path, image_root=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("places365", 365), ("imagenet", 1000)]
)
def test_shipped_names_are_distinct_once_told_apart(name: str, classes: int) -> None:
    shown = {(item.name, item.disambiguation) for item in shipped_class_list(name)}
    assert len(shown) == classes
    assert all(text.strip() == text for text, _ in shown)


# --- the Hub ----------------------------------------------------------------------------------------------


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
