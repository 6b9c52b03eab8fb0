"""CIFAR as its owners publish it: archives of pickles, of which nothing is run."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
        for member in tar.getmembers():  # extractall warns or fails, by the Python version
            tar.extract(member, folder, set_attrs=False)
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
