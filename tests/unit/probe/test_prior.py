"""Calibration and class shares on answers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdpr.probe.prior import Calibration, estimate_shares, fit_calibration, log_normalised

CLASSES = 5
REFERENCE_C = np.full(CLASSES, 1 / CLASSES)


def answers(share_C: np.ndarray, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores log p(x | c) of Gaussian features (N, C), and labels drawn with `share_C`."""
    generator = np.random.default_rng(seed)
    means_Cd = 1.5 * np.eye(CLASSES)
    label_N = generator.choice(CLASSES, images, p=share_C)
    x_Nd = means_Cd[label_N] + generator.normal(size=(images, CLASSES))
    return -((x_Nd[:, None] - means_Cd) ** 2).sum(-1) / 2, label_N


def every(images: int) -> np.ndarray:
    return np.tile(np.arange(CLASSES), (images, 1))


def test_scale_and_bias_are_found_again() -> None:
    score_NC, label_N = answers(REFERENCE_C, 20_000, seed=0)
    bias_C = np.array([1.0, -1.0, 0.5, 0.0, -0.5])
    found = fit_calibration((score_NC - bias_C) / 3, label_N, CLASSES, shrinkage=0.0, fit_scale=True)
    assert found.scale == pytest.approx(3, rel=0.03)
    np.testing.assert_allclose(found.bias_C - found.bias_C.mean(), bias_C - bias_C.mean(), atol=0.07)


def test_recorded_classes_in_any_order_calibrate_as_all_in_order() -> None:
    score_NC, label_N = answers(REFERENCE_C, 500, seed=1)
    class_NK = np.argsort(-score_NC, axis=1)
    sorted_NK = np.take_along_axis(score_NC, class_NK, axis=1)
    plain = fit_calibration(score_NC, label_N, CLASSES, shrinkage=0.05, fit_scale=True)
    top = fit_calibration(sorted_NK, label_N, CLASSES, class_NK=class_NK, shrinkage=0.05, fit_scale=True)
    assert top.scale == pytest.approx(plain.scale, abs=1e-6)
    np.testing.assert_allclose(top.bias_C, plain.bias_C, atol=1e-6)


def test_an_image_whose_label_is_not_recorded_has_no_say() -> None:
    score_NC, label_N = answers(REFERENCE_C, 300, seed=2)
    class_NK = np.argsort(-score_NC, axis=1)[:, :4]
    top_NK = np.take_along_axis(score_NC, class_NK, axis=1)
    known = (class_NK == label_N[:, None]).any(axis=1)
    assert not known.all()
    everything = fit_calibration(top_NK, label_N, CLASSES, class_NK=class_NK, shrinkage=0.05, fit_scale=True)
    only = fit_calibration(
        top_NK[known], label_N[known], CLASSES, class_NK=class_NK[known], shrinkage=0.05, fit_scale=True
    )
    np.testing.assert_allclose(everything.bias_C, only.bias_C, atol=1e-7)


@pytest.mark.parametrize("share_C", [[0.6, 0.2, 0.1, 0.06, 0.04], [0.2, 0.2, 0.2, 0.2, 0.2]], ids=["shifted", "same"])
def test_shares_are_found_without_labels(share_C: list[float]) -> None:
    score_NC, label_N = answers(np.array(share_C), 20_000, seed=3)
    found_C = estimate_shares(score_NC, every(len(label_N)), REFERENCE_C)
    true_C = np.bincount(label_N, minlength=CLASSES) / len(label_N)
    counted_C = np.bincount(score_NC.argmax(axis=1), minlength=CLASSES) / len(label_N)
    np.testing.assert_allclose(found_C, true_C, atol=0.015)
    assert np.abs(found_C - true_C).sum() <= np.abs(counted_C - true_C).sum() + 0.02
    assert found_C.sum() == pytest.approx(1)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_expectation_maximisation_never_lowers_the_likelihood(seed: int, images: int) -> None:
    score_NC, _ = answers(np.array([0.6, 0.2, 0.1, 0.06, 0.04]), images, seed)
    found_C = estimate_shares(score_NC, every(images), REFERENCE_C)

    def penalised(share_C: np.ndarray) -> float:
        pseudo_C = 0.5 * CLASSES * REFERENCE_C
        return float(np.log(np.exp(score_NC) @ share_C).sum() + pseudo_C @ np.log(share_C))

    assert penalised(found_C) >= penalised(REFERENCE_C) - 1e-9
    assert (found_C > 0).all()


def test_no_images_leave_the_start() -> None:
    start_C = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    nothing_C = estimate_shares(np.empty((0, CLASSES)), np.empty((0, CLASSES), dtype=int), start_C)
    np.testing.assert_allclose(nothing_C, start_C)


def test_the_prior_that_a_model_has_taken_in_is_what_calibration_removes() -> None:
    prior_C = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    score_NC, label_N = answers(REFERENCE_C, 20_000, seed=5)
    found = fit_calibration(score_NC + np.log(prior_C), label_N, CLASSES, shrinkage=0.0, fit_scale=False)
    np.testing.assert_allclose(np.exp(found.log_prior_C), prior_C, atol=0.02)
    same = Calibration(1.0, np.zeros(CLASSES))
    np.testing.assert_allclose(same.scores(score_NC, every(len(score_NC))), score_NC)
    assert np.exp(log_normalised(prior_C)).sum() == pytest.approx(1)
