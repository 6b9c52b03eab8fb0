"""Look-alikes: the hash against scipy's transform, the search against comparing all pairs."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dct
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mdpr.data.near_duplicates import NOTHING, grey_thumbnail, groups_within, nearest_within, perceptual_hashes

RNG = np.random.default_rng(3)


def picture(seed: int, side_px: int = 96) -> Image.Image:
    """Smooth shapes, as photographs have them; noise alone has no low frequencies to speak of."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC)


def hash_of(image: Image.Image) -> np.uint64:
    (value,) = perceptual_hashes([grey_thumbnail(image)])
    return value


def test_hash_is_the_transform_of_scipy() -> None:
    grey = np.frombuffer(grey_thumbnail(picture(1)), np.uint8).reshape(32, 32).astype(np.float64)
    low = dct(dct(grey, axis=0), axis=1)[:8, :8]
    bits = "".join("1" if value else "0" for value in (low > np.median(low)).ravel())
    assert hash_of(picture(1)) == int(bits, 2)


def test_scaling_and_compressing_change_few_bits_another_picture_many() -> None:
    original = picture(1)
    stream = io.BytesIO()
    original.resize((70, 70)).save(stream, "JPEG", quality=60)
    copy, other = hash_of(Image.open(stream)), hash_of(picture(2))
    assert np.bitwise_count(hash_of(original) ^ copy) <= 2
    assert np.bitwise_count(hash_of(original) ^ other) > 10


@pytest.mark.parametrize("max_bits", [0, 1, 2, 5, 9])
def test_search_equals_comparing_all_pairs(max_bits: int) -> None:
    known = np.concatenate([RNG.integers(0, 2**64, 200, np.uint64), np.zeros(5, np.uint64)])
    asked = known[RNG.integers(0, len(known), 300)].copy()
    for row in range(len(asked)):
        for bit in RNG.integers(0, 64, RNG.integers(0, 12)):
            asked[row] ^= np.uint64(1) << np.uint64(bit)
    index, bits = nearest_within(known, asked, max_bits)
    distance = np.bitwise_count(known[None, :] ^ asked[:, None])
    near = distance.min(axis=1) <= max_bits
    assert 0 < near.sum() < len(asked)
    assert np.array_equal(index != NOTHING, near)
    assert np.array_equal(bits[near], distance.min(axis=1)[near])
    assert np.array_equal(index[near], distance.argmin(axis=1)[near])  # the first of the nearest


@pytest.mark.parametrize("max_bits", [0, 1, 4])
def test_groups_are_the_components_of_all_pairs(max_bits: int) -> None:
    chain = [np.uint64(2**length - 1) for length in range(0, 60, 2)]  # each two bits from the next
    hashes = np.concatenate([RNG.integers(0, 2**64, 50, np.uint64), np.array(chain), np.array(chain)])
    near = np.bitwise_count(hashes[None, :] ^ hashes[:, None]) <= max_bits
    components, expected = connected_components(coo_matrix(near), directed=False)
    group = groups_within(hashes, max_bits)
    assert len(set(group)) == components
    assert len(set(zip(group, expected, strict=True))) == components
    assert groups_within(np.empty(0, np.uint64), max_bits).size == 0


def test_nothing_to_compare() -> None:
    nothing = np.empty(0, np.uint64)
    assert nearest_within(nothing, np.array([5], np.uint64), 3)[0].tolist() == [NOTHING]
    assert nearest_within(np.array([5], np.uint64), nothing, 3)[0].size == 0
    assert perceptual_hashes([]).size == 0
