"""Fashion-MNIST: reading the official files, and deciding which image may be used for what.

N images of 28 x 28 grey pixels (uint8); an image's identity is the SHA-256 of its 784 pixels, row by row.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdpr.errors import DataError

CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SELECTION_SEED = 0
# The smallest seed that puts both few-shot classes of the tuning set (bag, ankle boot) into the rarer half of
# pre-training: the rare classes are rare twice, which is the case the pipeline is about.
HIDDEN_ORDER_SEED = 0
POOL_IMAGES_PER_CLASS = 1_200
HIDDEN_MAX_IMAGES = 3_000
HIDDEN_IMBALANCE_RATIO = 20

_IMAGES_MAGIC, _LABELS_MAGIC = 0x0803, 0x0801


@dataclass(frozen=True)
class Split:
    """One official split: pixels (N, 28, 28) uint8, labels (N,) int64, and the N pixel hashes."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """Indices into the official training set, ascending, and the class order of the hidden imbalance.

    `hidden_order[0]` is the class that pre-training sees most of, `hidden_order[-1]` the one it sees least.
    """

    pretraining: NDArray[np.int64]
    pool: NDArray[np.int64]
    hidden_order: tuple[int, ...]


def pixel_hash(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of one image's pixels (28, 28), row by row, as 64 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()).hexdigest()


def read_split(source: Path, prefix: str) -> Split:
    """Read `<prefix>-images-idx3-ubyte.gz` and its labels from a folder; `prefix` is "train" or "t10k".

    Raises `DataError` when a file is missing, damaged, or the two do not belong together.
    """
    pixels = _read_idx(source / f"{prefix}-images-idx3-ubyte.gz", _IMAGES_MAGIC)
    labels = _read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", _LABELS_MAGIC)
    if len(pixels) != len(labels):
        raise DataError(f"{source}: {len(pixels)} {prefix} images but {len(labels)} labels")
    return Split(pixels, labels.astype(np.int64), tuple(pixel_hash(image) for image in pixels))


def hidden_counts(order: tuple[int, ...]) -> dict[int, int]:
    """Return the images wanted per class: n_max * (1 / ratio)^(rank / (C - 1)), by rank in `order`."""
    last = len(order) - 1
    return {
        label: round(HIDDEN_MAX_IMAGES * HIDDEN_IMBALANCE_RATIO ** (-rank / last)) for rank, label in enumerate(order)
    }


def select(train: Split, test: Split, seed: int = SELECTION_SEED) -> Selection:
    """Choose the pre-training images and the tuning pool; no pixels occur twice in these two and test.

    One seeded permutation cuts the training set in two halves. Pre-training takes its hidden imbalance from
    the first, the pool takes an equal number per class from the second. The data set holds exact duplicates,
    so both skip pixels already taken, test's first of all.
    """
    permutation = np.random.default_rng(seed).permutation(len(train.labels))
    hidden_order = tuple(np.random.default_rng(HIDDEN_ORDER_SEED).permutation(len(CLASS_NAMES)).tolist())
    first, second = np.array_split(permutation, 2)
    taken = set(test.hashes)
    pretraining = _take(train, first, hidden_counts(hidden_order), taken)
    wanted = dict.fromkeys(range(len(CLASS_NAMES)), POOL_IMAGES_PER_CLASS)
    pool = _take(train, second, wanted, taken)
    return Selection(pretraining, pool, hidden_order)


def _take(train: Split, candidates: NDArray[np.int64], wanted: dict[int, int], taken: set[str]) -> NDArray[np.int64]:
    """Walk over `candidates` until each class has what it wants, skipping and recording `taken` pixels."""
    remaining, chosen = dict(wanted), []
    for index in candidates.tolist():
        label, pixels = int(train.labels[index]), train.hashes[index]
        if remaining[label] > 0 and pixels not in taken:
            remaining[label] -= 1
            taken.add(pixels)
            chosen.append(index)
    short = {CLASS_NAMES[label]: count for label, count in remaining.items() if count}
    if short:
        raise DataError(f"the source has too few distinct images; still missing: {short}")
    return np.sort(np.asarray(chosen, dtype=np.int64))


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Read one gzipped IDX file of unsigned bytes: a big-endian magic number, the sizes, then the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing; --source takes Fashion-MNIST's folder of four .gz files") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if int.from_bytes(content[:4], "big") != magic:
        raise DataError(f"{path} is not an IDX file of the expected kind (magic number {magic:#06x})")
    rank = magic & 0xFF
    header = 4 + 4 * rank
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    values = np.frombuffer(content, dtype=np.uint8, offset=header)
    if values.size != int(np.prod(shape)):
        raise DataError(f"{path} is cut short: {values.size} values for shape {shape}")
    return values.reshape(shape)
