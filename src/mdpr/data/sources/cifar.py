"""CIFAR-10 and CIFAR-100 from the original archive for Python, cifar-10-python.tar.gz or cifar-100-python.tar.gz.

Its files are pickles. A pickle is a program, so none is run here: pickletools (standard library) lists the
operations, and pixels and labels are read off their arguments. The order of the images is the archive's,
which is what published long-tailed cuts are defined on.
"""

from __future__ import annotations

import pickletools
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdpr.data.class_list import shipped_class_list
from mdpr.data.sources.source import PixelSplit, Place, Source
from mdpr.errors import DataError

SIDE_PX = 32
IMAGE_BYTES = 3 * SIDE_PX * SIDE_PX
KEYS = frozenset({b"data", b"labels", b"fine_labels", b"coarse_labels", b"filenames", b"batch_label"})
NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "INT"})


@dataclass(frozen=True)
class Archive:
    """The file's name and what is in it; `label_key` is the entry that holds the labels."""

    name: str
    folder: str
    train: Sequence[str]
    test: str
    label_key: str
    torchvision_class: str


CIFAR10 = Archive(
    "cifar-10-python.tar.gz",
    "cifar-10-batches-py",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    "labels",
    "CIFAR10",
)
CIFAR100 = Archive("cifar-100-python.tar.gz", "cifar-100-python", ("train",), "test", "fine_labels", "CIFAR100")


def cifar10_source(place: Place) -> Source:
    """The original archive (or its unpacked folder) in the root; fetched by torchvision where it is missing."""
    return _cifar(place, CIFAR10, "cifar10")


def cifar100_source(place: Place) -> Source:
    """As `cifar10_source`, with the 100 fine labels."""
    return _cifar(place, CIFAR100, "cifar100")


def _cifar(place: Place, archive: Archive, name: str) -> Source:
    classes = shipped_class_list(name)
    if not (place.root / archive.folder).is_dir() and not (place.root / archive.name).is_file():
        _download(archive, place.root)
    pool = [_read_batch(content, archive, len(classes)) for content in _contents(place.root, archive, archive.train)]
    (test,) = (
        _read_batch(content, archive, len(classes)) for content in _contents(place.root, archive, [archive.test])
    )
    pixels, labels = zip(*pool, strict=True)
    return Source(
        classes=classes,
        pool=PixelSplit(np.concatenate(pixels), np.concatenate(labels), "train"),
        val=None,
        test=PixelSplit(*test, "test"),
    )


def _contents(root: Path, archive: Archive, members: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The files `members`, each with the words that name it."""
    if (root / archive.folder).is_dir():
        for member in members:
            file = root / archive.folder / member
            if not file.is_file():
                raise DataError(f"{file} is missing: unpack {archive.name} again")
            yield str(file), file.read_bytes()
        return
    try:
        with tarfile.open(root / archive.name) as tar:
            for member in members:
                stream = tar.extractfile(f"{archive.folder}/{member}")
                if stream is None:
                    raise KeyError(member)
                yield f"{root / archive.name}: {member}", stream.read()
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise DataError(f"{root / archive.name} is not the original archive ({error}): fetch it again") from None


def _read_batch(content: tuple[str, bytes], archive: Archive, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, 32, 32, 3) and labels int64 (N,) of one pickled batch."""
    where, data = content
    pixels, labels = b"", list[int]()
    key = ""
    try:
        for operation, argument, _ in pickletools.genops(data):
            if isinstance(argument, str | bytes):
                text = argument.encode("latin-1") if isinstance(argument, str) else argument
                if len(text) >= IMAGE_BYTES:
                    pixels = text
                elif text in KEYS:
                    key = text.decode()
            elif isinstance(argument, int) and key == archive.label_key and operation.name in NUMBERS:
                labels.append(argument)
    except (ValueError, UnicodeEncodeError) as error:
        raise DataError(f"{where} is damaged ({error}): fetch the archive again") from None
    if not labels or len(pixels) != len(labels) * IMAGE_BYTES or max(labels) >= classes:
        raise DataError(f"{where} is not a batch of {archive.name}: fetch the archive again")
    pixels_N3HW = np.frombuffer(pixels, np.uint8).reshape(-1, 3, SIDE_PX, SIDE_PX)
    return np.ascontiguousarray(pixels_N3HW.transpose(0, 2, 3, 1)), np.array(labels, np.int64)


def _download(archive: Archive, root: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    original = getattr(datasets, archive.torchvision_class)
    try:
        download_url(original.url, str(root), archive.name, original.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root} has no {archive.name} and it cannot be fetched ({error}): put it there") from None
