"""The bootstrap over counts is the bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from benchmarks.coverage import ALPHA, simulate
from scipy.stats import binomtest

from mdpr.evaluation.uncertainty import (
    BORROWED_IMAGES,
    accuracy_intervals,
    branch_biases,
    effective_shares,
    gain_intervals,
    images_to_borrow,
    intervals,
)

SHOTS = ["many", "many", "medium", "few"]
IMAGES = 40
RESAMPLINGS = 3000


def resample_images(value_N: np.ndarray, label_N: np.ndarray, classes: list[int]) -> np.ndarray:
    """The plain loop: draw images with replacement class by class, average, average over classes."""
    rng = np.random.default_rng(1)
    means = np.zeros(RESAMPLINGS)
    for index in classes:
        value_n = value_N[label_N == index]
        drawn = rng.integers(0, len(value_n), (RESAMPLINGS, len(value_n)))
        means += value_n[drawn].mean(axis=1) / len(classes)
    return means


@pytest.fixture
def table(predictions: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return predictions(len(SHOTS), IMAGES)


@pytest.mark.parametrize(("group", "classes"), [("all", [0, 1, 2, 3]), ("many", [0, 1]), ("few", [3])])
def test_intervals_agree_with_resampling_images(table: pd.DataFrame, group: str, classes: list[int]) -> None:
    label_N = table["label"].to_numpy()
    base_N = (table["base_top1"] == table["label"]).to_numpy().astype(float)
    fused_N = (table["fused_top1"] == table["label"]).to_numpy().astype(float)
    one_image = 1 / (IMAGES * len(classes))
    for found, value_N in (
        (accuracy_intervals(table, "base", SHOTS), base_N),
        (gain_intervals(table, "fused", "base", SHOTS), fused_N - base_N),
    ):
        expected = np.quantile(resample_images(value_N, label_N, classes), [0.025, 0.975])
        if expected[0] == expected[1]:  # every image alike: resampling shows no spread where there is some
            assert found[group][1] - found[group][0] > one_image
        else:
            np.testing.assert_allclose(found[group], expected, atol=2 * one_image)
        assert found[group][0] <= value_N[np.isin(label_N, classes)].mean() <= found[group][1]


def test_the_same_predictions_give_the_same_intervals(table: pd.DataFrame) -> None:
    assert intervals(table, SHOTS) == intervals(table.copy(), SHOTS)


def test_a_gain_over_itself_is_around_zero_and_empty_groups_are_absent(table: pd.DataFrame) -> None:
    found = gain_intervals(table, "base", "base", ["many", "many", "many", "few"])
    assert set(found) == {"all", "many", "few"}
    for group, classes in {"all": 4, "many": 3, "few": 1}.items():
        low, high = found[group]
        assert -4 / (IMAGES * classes) < low < 0 < high < 4 / (IMAGES * classes)
        assert high == pytest.approx(-low)


def test_p_is_two_sided_never_zero_and_agrees_with_the_bounds() -> None:
    (share,) = effective_shares(np.array([[9, 2, 29], [8, 1, 31]]), (1, -1, 0), {"all": [0, 1]}).values()
    assert 0 < share.p_value() < 1
    low, high = share.bounds(0.025)
    assert share.p_value(low) == pytest.approx(0.05)
    assert share.p_value(high) == pytest.approx(0.05)
    (none,) = effective_shares(np.array([[0, 0, 40]]), (1, -1, 0), {"all": [0]}).values()
    assert none.p_value() == 1


@pytest.mark.parametrize("images", [1, 2, 3, 5, 10, 50])
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_intervals_cover_the_truth_from_one_image_per_class_upwards(images: int, classes: int) -> None:
    """95 % intervals hold the true mean in at least 93 % of simulated test sets, less three standard errors."""
    rng = np.random.default_rng(images * classes)
    tries = 400 if classes < 1000 else 150
    members = {"all": range(classes)}
    truths = {"alike": np.full(classes, 0.5), "good": np.full(classes, 0.8), "mixed": rng.beta(2, 0.7, classes)}
    least = 0.93 - 3 * np.sqrt(0.93 * 0.07 / tries)
    for name, chance_C in truths.items():
        hits = 0
        for right_C in rng.binomial(images, chance_C, size=(tries, classes)):
            count_C2 = np.stack([right_C, images - right_C], axis=1)
            low, high = effective_shares(count_C2, (1, 0), members)["all"].bounds(0.025)
            hits += low <= chance_C.mean() <= high
        assert hits / tries >= least, name
    for name, (won, lost) in {"better": (0.1, 0.05), "even": (0.2, 0.2)}.items():
        hits = 0
        for count_C3 in rng.multinomial(images, [won, lost, 1 - won - lost], size=(tries, classes)):
            low, high = effective_shares(count_C3, (1, -1, 0), members)["all"].bounds(0.025)
            hits += low <= won - lost <= high
        assert hits / tries >= least, name


def test_paired_gains_are_narrower_than_unpaired_ones(table: pd.DataFrame) -> None:
    found = intervals(table, SHOTS)
    widths = [high - low for low, high in (found.accuracy["fused"]["all"], found.accuracy["base"]["all"])]
    low, high = found.gain_of_fused["base"]["all"]
    assert high - low < sum(widths)


def test_bounds_hold_from_one_image_per_class_upwards() -> None:
    """95 % intervals of scores and differences, and the gate's bound for two models that are equally good."""
    trials = 1500
    cells = [
        *simulate(classes=(10,), trials=trials),
        *simulate(classes=(100,), images=(1, 5, 50), spreads=(None, 0.8), trials=trials // 3),
        *simulate(classes=(1000,), images=(1, 10), spreads=(None,), trials=trials // 10),
    ]
    for cell in cells:
        count = {10: trials, 100: trials // 3, 1000: trials // 10}[cell.classes]
        noise = 3 * np.sqrt(0.05 * 0.95 / count)
        assert cell.coverage >= min(0.93, 0.95 - noise), cell
        assert not cell.is_of_equal_models or cell.above <= ALPHA + noise, cell


def test_an_outcome_that_did_not_happen_is_not_impossible() -> None:
    """Of 10 classes with 10 images each none is wrong: the bound is that of 100 images, not of 190."""
    count_CK = np.tile([10, 0], (10, 1))
    low, high = effective_shares(count_CK, (1, 0), {"all": range(10)})["all"].bounds(0.025)
    assert high == 1
    assert low == pytest.approx(binomtest(100, 100).proportion_ci().low, abs=0.005)


@pytest.mark.parametrize("images", [1, 2, 10])
@pytest.mark.parametrize("rise", [0.0, 0.2])
def test_the_interval_of_a_slope_holds_the_true_slope_from_one_image_per_class(images: int, rise: float) -> None:
    """And that of a correlation has a width, and its estimate inside."""
    x_C = np.linspace(0, 2, 40)
    chance_C = 0.4 + rise * x_C
    chance_C4 = np.stack([0 * chance_C, chance_C, 0 * chance_C, 1 - chance_C], axis=1)
    rng, held, trials = np.random.default_rng(0), 0, 150
    for _ in range(trials):
        bias = branch_biases(rng.multinomial(images, chance_C4), {"by_count": x_C}, 200)["by_count"]
        assert bias.slope_interval is not None
        assert bias.correlation_interval is not None
        held += bias.slope_interval[0] <= rise <= bias.slope_interval[1]
        assert bias.correlation_interval[1] - bias.correlation_interval[0] > 0.1
    assert held / trials >= 0.89  # 0.93 less two standard errors of this many trials


@pytest.mark.parametrize("falls", [False, True])
def test_the_interval_of_a_correlation_ends_at_one(falls: bool) -> None:
    """Few test images: the interval is moved, and would go beyond."""
    rest_C = np.array([0, 1, 1, 1, 2, 3])
    count_C4 = np.stack(
        [0 * rest_C, 3 - rest_C if falls else rest_C, 0 * rest_C, rest_C if falls else 3 - rest_C], axis=1
    )
    bias = branch_biases(count_C4, {"by_count": np.arange(6.0)}, 200)["by_count"]
    assert bias.correlation is not None
    assert bias.correlation_interval is not None
    assert -1 <= bias.correlation_interval[0] <= bias.correlation <= bias.correlation_interval[1] <= 1
    assert (-1 if falls else 1) in bias.correlation_interval


def test_classes_that_are_alike_borrow_more() -> None:
    image_C = np.full(50, 20)
    alike_C = np.random.default_rng(0).binomial(20, 0.5, 50)
    apart_C = np.repeat([2, 18], 25)
    assert images_to_borrow(alike_C, image_C) > 10 * images_to_borrow(apart_C, image_C)
    assert images_to_borrow(np.ones(5), np.ones(5)) == BORROWED_IMAGES
