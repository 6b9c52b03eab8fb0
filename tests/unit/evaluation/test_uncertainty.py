"""The bootstrap over counts is the bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mdpr.evaluation.uncertainty import accuracy_intervals, gain_intervals, intervals

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
        means = resample_images(value_N, label_N, classes)
        np.testing.assert_allclose(found[group], np.quantile(means, [0.025, 0.975]), atol=1.5 * one_image)
        assert found[group][0] <= value_N[np.isin(label_N, classes)].mean() <= found[group][1]


def test_the_same_predictions_give_the_same_intervals(table: pd.DataFrame) -> None:
    assert intervals(table, SHOTS) == intervals(table.copy(), SHOTS)


def test_a_gain_over_itself_has_no_width_and_empty_groups_are_absent(table: pd.DataFrame) -> None:
    found = gain_intervals(table, "base", "base", ["many", "many", "many", "few"])
    assert found == {"all": (0.0, 0.0), "many": (0.0, 0.0), "few": (0.0, 0.0)}


def test_paired_gains_are_narrower_than_unpaired_ones(table: pd.DataFrame) -> None:
    found = intervals(table, SHOTS)
    widths = [high - low for low, high in (found.accuracy["fused"]["all"], found.accuracy["base"]["all"])]
    low, high = found.gain_of_fused["base"]["all"]
    assert high - low < sum(widths)
