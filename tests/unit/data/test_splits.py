"""The profile's formula, and the cut against the published generator's own steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdpr.artifacts import ClassInfo, ClassName
from mdpr.data.preparation import class_infos
from mdpr.data.sources import Source
from mdpr.data.sources.source import PixelSplit
from mdpr.data.splits import (
    Cut,
    cut_pool,
    exponential_profile,
    hold_out_test,
    pareto_profile,
    planned_counts,
    shot_group,
    step_profile,
)
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


def usual_generator(labels_N: np.ndarray, classes: int, imbalance_ratio: int, seed: int) -> list[np.ndarray]:
    """The rows of each class that the generator of the published CIFAR-LT code keeps, in its own order."""
    random = np.random.RandomState(seed)
    largest, factor = len(labels_N) / classes, 1 / imbalance_ratio
    kept = []
    for label in range(classes):
        count = int(largest * factor ** (label / (classes - 1.0)))
        rows = np.where(labels_N == label)[0]
        random.shuffle(rows)
        kept.append(rows[:count])
    return kept


@pytest.mark.parametrize("imbalance_ratio", [10, 50, 100, 200])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_lt_subsets_are_those_of_the_usual_generator(classes: int, imbalance_ratio: int) -> None:
    labels_N = np.random.default_rng(1).permutation(np.repeat(np.arange(classes), 50_000 // classes))
    params = PrepareParams(max_images_per_class=50_000 // classes, imbalance_ratio=imbalance_ratio)
    cut = cut_pool(labels_N, [str(label) for label in range(classes)], params, with_val=False)
    expected = np.concatenate(usual_generator(labels_N, classes, imbalance_ratio, seed=0))
    assert np.array_equal(cut.train, np.sort(expected))


def test_step_has_two_sizes() -> None:
    assert step_profile(500, 10, 4) == [500, 500, 50, 50]
    assert step_profile(49, 49, 5) == [49, 49, 1, 1, 1]


@given(st.integers(1, 400), st.integers(2, 50), st.floats(0.5, 20))
def test_pareto_ends_where_the_ratio_says(ratio: int, classes: int, power: float) -> None:
    profile = pareto_profile(10 * ratio, ratio, classes, power)
    assert (profile[0], profile[-1]) == (10 * ratio, 10)
    assert profile == sorted(profile, reverse=True)


def test_pareto_is_exponential_in_the_limit_and_steeper_before() -> None:
    limit = pareto_profile(1000, 100, 10, 1e6)
    assert np.abs(np.subtract(limit, exponential_profile(1000, 100, 10))).max() <= 1
    assert pareto_profile(1000, 100, 10, 6)[4] < exponential_profile(1000, 100, 10)[4]


def test_class_order() -> None:
    pool_C = np.array([50, 90, 70])
    plan = {
        order: planned_counts(params(class_order=order, max_images_per_class=40), pool_C, 4)
        for order in ("given", "by_count", "shuffled")
    }
    assert plan["given"] == [40, 20, 10]
    assert plan["by_count"] == [10, 40, 20]
    assert sorted(plan["shuffled"]) == [10, 20, 40]
    drawn = {tuple(planned_counts(params(class_order="shuffled", seed=seed), pool_C, 4)) for seed in range(20)}
    assert len(drawn) == 6


def test_order_changes_how_many_images_a_class_keeps_and_not_which_come_first() -> None:
    labels_N = np.repeat([0, 1, 2], 60)
    given_order, by_count = (
        cut_pool(labels_N, "abc", params(class_order=order, seed=5), with_val=False).train
        for order in ("given", "by_count")
    )
    assert np.array_equal(given_order, by_count)  # all classes are as large as each other
    shuffled = cut_pool(labels_N, "abc", params(class_order="shuffled", seed=5), with_val=False).train
    for label in range(3):
        one, other = (set(rows[labels_N[rows] == label]) for rows in (given_order, shuffled))
        assert one <= other or other <= one


def test_validation_as_a_share_comes_out_of_the_cut() -> None:
    labels_N = np.repeat([0, 1, 2], 60)
    names = ["ant", "bee", "cat"]
    settings = {"max_images_per_class": 60, "imbalance_ratio": 6, "val_images_per_class": 8}
    with pytest.raises(DataError, match=r"prepare\.val_from to train_share"):
        cut_pool(labels_N, names, params(**settings), with_val=True)
    cut = cut_pool(labels_N, names, params(**settings, val_from="train_share"), with_val=True)
    assert np.bincount(labels_N[cut.val]).tolist() == [8, 4, 2]
    assert np.bincount(labels_N[cut.train]).tolist() == [52, 20, 8]
    assert cut.validation == "train_share"
    whole = cut_pool(labels_N, names, params(**settings), with_val=False).train
    assert np.array_equal(np.sort(np.concatenate([cut.train, cut.val])), whole)


def test_rows_left_out_are_never_taken() -> None:
    labels_N = np.array([0, -1, 0, 1, -1, 1, 0, 1])
    cut = cut_pool(labels_N, "ab", params(profile="natural"), with_val=True)
    assert set(np.concatenate([cut.train, cut.val])) == {0, 2, 3, 5, 6, 7}


def test_a_test_set_is_held_out_by_class_and_hangs_on_its_share_alone() -> None:
    labels_N = np.repeat([0, 1, 2], [50, 9, 2])
    rows = hold_out_test(labels_N, "abc", 0.2)
    assert np.bincount(labels_N[rows]).tolist() == [10, 1, 1]
    assert np.array_equal(rows, hold_out_test(labels_N, "abc", 0.2))
    with pytest.raises(DataError, match=r"class 2 \(c\) has 1 image, 2 are needed for a test set"):
        hold_out_test(labels_N[:-1], "abc", 0.2)


def test_shots_may_be_judged_by_another_ratio() -> None:
    def shots(shots_from: float | None) -> list[str]:
        pool = PixelSplit(np.empty(0), np.repeat(np.arange(3), 400), "")
        source = Source(tuple(ClassName(index=i, name=n) for i, n in enumerate("abc")), pool, None, None)
        settings = params(max_images_per_class=400, imbalance_ratio=10, shots_from=shots_from)
        infos: list[ClassInfo] = class_infos(source, [400, 126, 40], settings)
        assert [item.train_images for item in infos] == [400, 126, 40]
        return [item.shot for item in infos]

    assert shots(None) == ["many", "many", "medium"]
    assert shots(100) == ["many", "medium", "few"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "natural", "shots_from": 100}, "shots_from is the ratio of a cut"),
        ({"source": "huggingface"}, "needs hub_name"),
        ({"pareto_power": 0}, "greater than 0"),
        ({"test_share": 1}, "less than 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareParams.model_validate(settings)


def params(**settings: object) -> PrepareParams:
    return PrepareParams.model_validate({"imbalance_ratio": 4, "max_images_per_class": 40, **settings})
