"""CIFAR-10 and CIFAR-100 from the original archive for Python, cifar-10-python.tar.gz or cifar-100-python.tar.gz.

The order of the images is the archive's, which is what published long-tailed cuts are defined on. Its files are
pickles, which are programs: what is read here can hold data only.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mdpr.data.class_list import shipped_class_list
from mdpr.data.sources.source import PixelSplit, Place, Source
from mdpr.errors import DataError

SIDE_PX = 32
IMAGE_BYTES = 3 * SIDE_PX * SIDE_PX


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
    """The original archive (or its unpacked folder) in the root; fetched by torchvision if it is missing."""
    return _cifar(place, CIFAR10, "cifar10")


def cifar100_source(place: Place) -> Source:
    """As `cifar10_source`, with the 100 fine labels."""
    return _cifar(place, CIFAR100, "cifar100")


def _cifar(place: Place, archive: Archive, name: str) -> Source:
    classes = shipped_class_list(name)
    if not (place.root / archive.folder).is_dir() and not (place.root / archive.name).is_file():
        _download(archive, place.root)
    *pool, test = (_read_batch(content, archive, len(classes)) for content in _contents(place.root, archive))
    pixels, labels = zip(*pool, strict=True)
    return Source(
        classes=classes,
        pool=PixelSplit(np.concatenate(pixels), np.concatenate(labels), "train"),
        val=None,
        test=PixelSplit(*test, "test"),
    )


def _contents(root: Path, archive: Archive) -> Iterator[tuple[str, bytes]]:
    """The files of training, then that of the test, each with the words that name it."""
    members = (*archive.train, archive.test)
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


class BatchUnpickler(pickle.Unpickler):
    """Reads dicts, lists, texts, numbers and NumPy arrays. Any other name in a pickle is an error; nothing is run."""

    NAMES: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self.NAMES[module, name]


def _read_batch(content: tuple[str, bytes], archive: Archive, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, 32, 32, 3) and labels int64 (N,) of one pickled batch."""
    where, data = content
    try:
        batch = BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises whatever its operations run into
        raise DataError(f"{where} is damaged ({error}): fetch the archive again") from None
    entries = {os.fsdecode(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    pixels, labels = entries.get("data"), entries.get(archive.label_key)
    if (
        not isinstance(pixels, np.ndarray)
        or not isinstance(labels, list)
        or (pixels.dtype, pixels.shape) != (np.uint8, (len(labels), IMAGE_BYTES))
        or not all(isinstance(label, int) and 0 <= label < classes for label in labels)
    ):
        raise DataError(f"{where} is not a batch of {archive.name}: fetch the archive again")
    pixels_N3HW = pixels.reshape(-1, 3, SIDE_PX, SIDE_PX)
    return np.ascontiguousarray(pixels_N3HW.transpose(0, 2, 3, 1)), np.array(labels, np.int64)


def _download(archive: Archive, root: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    original = getattr(datasets, archive.torchvision_class)
    try:
        download_url(original.url, str(root), archive.name, original.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root} has no {archive.name} and it cannot be fetched ({error}): put it there") from None
