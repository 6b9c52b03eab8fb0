"""Pictures that look alike: perceptual hashes, the nearest of them, and groups.

The hash is pHash: the 8 x 8 lowest frequencies of the cosine transform of the picture, grey and 32 x 32, each compared
with their median (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). Searches are
exact, without comparing all pairs: cut into max_bits + 1 bands, two hashes that differ in at most max_bits bits agree
in at least one whole band.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE_PX = 32
FREQUENCIES = 8
HASH_BITS = FREQUENCIES**2
COMPARED_TOGETHER = 4_000_000  # candidate pairs in memory at one time
NOTHING = -1
INDEX_BITS = 48  # of an image


def grey_thumbnail(image: Image.Image) -> bytes:
    """The part of a picture that is hashed: 32 x 32 grey values, row by row."""
    return image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX).convert("L").tobytes()


def perceptual_hashes(thumbnails: list[bytes]) -> np.ndarray:
    """uint64 (N,), one hash per thumbnail."""
    grey_NHW = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, SIDE_PX, SIDE_PX).astype(np.float32)
    k, n = np.arange(FREQUENCIES)[:, None], np.arange(SIDE_PX)
    cosine_kn = np.cos(np.pi * k * (2 * n + 1) / (2 * SIDE_PX)).astype(np.float32)
    low_Nf = (cosine_kn @ grey_NHW @ cosine_kn.T).reshape(-1, HASH_BITS)
    above_Nf = low_Nf > np.median(low_Nf, axis=1, keepdims=True)
    return np.packbits(above_Nf, axis=1).view(">u8").ravel().astype(np.uint64)


def groups_within(hash_N: np.ndarray, max_bits: int) -> np.ndarray:
    """Numbers the groups of hashes that are linked by steps of at most `max_bits` bits: int64 (N,), from 0."""
    known, known_as_N = np.unique(hash_N, return_inverse=True)
    group = np.arange(len(known))
    links = [np.stack([one, other]) for one, other, bits in _candidates(known, known, max_bits)]
    one, other = np.concatenate(links, axis=1) if links else np.empty((2, 0), np.int64)
    while not np.array_equal(group[one], group[other]):  # the lowest number of a group spreads along its links
        np.minimum.at(group, one, group[other])
        group = group[group]
    return np.unique(group, return_inverse=True)[1][known_as_N]


def nearest_within(known_M: np.ndarray, wanted_N: np.ndarray, max_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """For each hash of `wanted_N` the first nearest of `known_M` that differs in at most `max_bits` bits.

    Returns its index (int64, `NOTHING` if none is near) and the number of bits.
    """
    known, first_known = np.unique(known_M, return_index=True)
    wanted, wanted_as = np.unique(wanted_N, return_inverse=True)
    best = np.full(len(wanted), (max_bits + 1) << INDEX_BITS)  # the bits, then the index: the least is the nearest
    for rows, found, bits in _candidates(known, wanted, max_bits):
        np.minimum.at(best, rows, (bits << INDEX_BITS) | first_known[found])
    best_bits = best >> INDEX_BITS
    best_index = np.where(best_bits > max_bits, NOTHING, best & (2**INDEX_BITS - 1))
    return best_index[wanted_as], best_bits[wanted_as]


def _candidates(
    known: np.ndarray, wanted: np.ndarray, max_bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs that differ in at most `max_bits` bits: rows of `wanted`, rows of `known`, bits. A pair may come twice."""
    edges = np.linspace(0, HASH_BITS, max_bits + 2).astype(int)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        shift, mask = np.uint64(low), np.uint64(2 ** (high - low) - 1)
        band_M, band_N = (known >> shift) & mask, (wanted >> shift) & mask
        order = np.argsort(band_M, kind="stable")
        start_N = np.searchsorted(band_M[order], band_N, "left")
        count_N = np.searchsorted(band_M[order], band_N, "right") - start_N
        for block in _blocks(count_N):
            rows = np.repeat(block, count_N[block])
            within = np.arange(len(rows)) - np.repeat(np.cumsum(count_N[block]) - count_N[block], count_N[block])
            found = order[start_N[rows] + within]
            bits = np.bitwise_count(known[found] ^ wanted[rows]).astype(np.int64)
            near = bits <= max_bits
            yield rows[near], found[near], bits[near]


def _blocks(count_N: np.ndarray) -> list[np.ndarray]:
    """The rows that have candidates, in runs of about `COMPARED_TOGETHER` candidates."""
    rows = np.flatnonzero(count_N)
    if not rows.size:
        return []
    run = np.cumsum(count_N[rows]) // COMPARED_TOGETHER
    return np.split(rows, np.flatnonzero(np.diff(run)) + 1)
