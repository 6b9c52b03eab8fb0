"""The profile's formula, and the cut against the published generator's own steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdpr.data.splits import Cut, cut_pool, exponential_profile, shot_group
from mdpr.errors import DataError
from mdpr.params import PrepareParams

NAMES = ("ant", "bee", "cat")
LABELS_N = np.random.default_rng(5).permutation(np.repeat([0, 1, 2], [40, 30, 25]))
PARAMS = PrepareParams(max_images_per_class=20, imbalance_ratio=10, val_images_per_class=5, seed=3)


def test_profile_of_the_benchmark() -> None:
    assert exponential_profile(1000, 100, 10) == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]


def test_profile_of_cifar100_lt() -> None:
    profile = exponential_profile(500, 100, 100)
    assert (profile[0], profile[-1], sum(profile)) == (500, 5, 10847)  # 10,847 images: Cui et al., CVPR 2019


@given(st.integers(1, 400), st.integers(2, 50))
def test_profile_keeps_whole_numbers(ratio: int, classes: int) -> None:
    """49 * (1/49) is 0.9999999999999999 in floating point, and still one image."""
    profile = exponential_profile(ratio, ratio, classes)
    assert profile[0] == ratio
    assert profile[-1] == 1
    assert profile == sorted(profile, reverse=True)


def test_cut_is_that_of_the_usual_generator() -> None:
    cut = cut_pool(LABELS_N, NAMES, PARAMS, with_val=True)
    np.random.seed(PARAMS.seed)  # noqa: NPY002 - what the usual generator does
    for label, count in enumerate(exponential_profile(20, 10, 3)):
        rows = np.where(label == LABELS_N)[0]
        np.random.shuffle(rows)  # noqa: NPY002
        assert np.array_equal(rows_of(cut.train, label), np.sort(rows[:count]))
        assert np.array_equal(rows_of(cut.val, label), np.sort(rows[count : count + 5]))
    assert cut.validation == "left_over"


def test_another_seed_is_another_cut() -> None:
    other = PARAMS.model_copy(update={"seed": 4})
    first, second = (cut_pool(LABELS_N, NAMES, params, with_val=True) for params in (PARAMS, other))
    assert not np.array_equal(first.train, second.train)


def test_train_is_the_same_where_the_source_has_a_validation_split() -> None:
    without = cut_pool(LABELS_N, NAMES, PARAMS, with_val=False)
    assert np.array_equal(without.train, cut_pool(LABELS_N, NAMES, PARAMS, with_val=True).train)
    assert without.val.size == 0
    assert without.validation == "source"


def test_natural_gives_up_a_fifth_of_each_class_at_most() -> None:
    labels_N = np.repeat([0, 1, 2], [100, 9, 2])
    cut = cut_pool(labels_N, NAMES, natural(val_images_per_class=15), with_val=True)
    assert np.bincount(labels_N[cut.val]).tolist() == [15, 1, 1]
    assert np.array_equal(np.sort(np.concatenate([cut.train, cut.val])), np.arange(111))
    assert cut.validation == "train_share"


def test_natural_takes_all_where_the_source_has_a_validation_split() -> None:
    cut = cut_pool(LABELS_N, NAMES, natural(), with_val=False)
    assert np.array_equal(cut.train, np.arange(len(LABELS_N)))


@pytest.mark.parametrize(
    ("counts", "params", "message"),
    [
        ((40, 0, 9), PARAMS, r"class 1 \(bee\) has no image"),
        ((40, 10, 9), PARAMS, r"class 1 \(bee\) has 10 images, but 6 for training and 5 for validation"),
        ((40, 40, 40), PARAMS.model_copy(update={"imbalance_ratio": 30}), r"class 2 \(cat\) would get no image"),
        ((9, 9, 1), PrepareParams(profile="natural"), "class cat has 1 image, one more is needed"),
    ],
)
def test_impossible_cuts_name_the_class(counts: tuple[int, ...], params: PrepareParams, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cut_pool(np.repeat([0, 1, 2], counts), NAMES, params, with_val=True)


def test_shot_groups_at_their_borders() -> None:
    groups = {count: shot_group(count, many_above=100, few_below=20) for count in (101, 100, 20, 19)}
    assert groups == {101: "many", 100: "medium", 20: "medium", 19: "few"}


def rows_of(rows: np.ndarray, label: int) -> np.ndarray:
    return rows[LABELS_N[rows] == label]


def natural(**changes: int) -> PrepareParams:
    return PrepareParams(profile="natural", **changes)


def test_cut_is_disjoint() -> None:
    cut: Cut = cut_pool(LABELS_N, NAMES, PARAMS, with_val=True)
    assert not set(cut.train) & set(cut.val)
