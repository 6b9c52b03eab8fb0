"""Every figure against scikit-learn or against a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from mdpr.errors import ArtifactError
from mdpr.evaluation.metrics import (
    class_recall,
    expected_calibration_error,
    group_means,
    harmonic_mean,
    points,
    score,
    signed_points,
)
from mdpr.evaluation.predictions import PredictionRecorder, top_classes

CLASSES = 5
SHOTS = ["many", "many", "medium", "few", "few"]
answers = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=60)


def recorded(label_N: np.ndarray, scores_NC: np.ndarray) -> pd.DataFrame:
    log_probability_NC = torch.as_tensor(scores_NC).log_softmax(dim=-1)
    recorder = PredictionRecorder()
    recorder.add(torch.as_tensor(label_N), {"zero_shot": log_probability_NC, "base": log_probability_NC})
    return recorder.table()


@settings(deadline=None, max_examples=60)
@given(answers)
def test_class_balanced_figures_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    label_N, top1_N = np.array(pairs).T
    recall_C = class_recall(label_N, top1_N, CLASSES)
    tested = np.unique(label_N)
    np.testing.assert_allclose(
        recall_C[tested],
        sklearn_metrics.recall_score(label_N, top1_N, labels=tested, average=None, zero_division=0),
    )
    assert np.isnan(np.delete(recall_C, tested)).all()
    means = group_means(recall_C, SHOTS)
    assert means["all"] == pytest.approx(
        sklearn_metrics.recall_score(label_N, top1_N, labels=tested, average="macro", zero_division=0)
    )
    for group in ("many", "medium", "few"):
        members = [index for index in tested if SHOTS[index] == group]
        assert (group in means) == bool(members)
        if members:
            assert means[group] == pytest.approx(np.mean([recall_C[index] for index in members]))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_scores_of_random_predictions_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label_N = np.concatenate([np.arange(9), rng.integers(0, 9, 40)])
    scores_NC = rng.normal(size=(len(label_N), 9))
    shots = ["many"] * 3 + ["medium"] * 3 + ["few"] * 3
    figures = score(recorded(label_N, scores_NC), shots)["base"]
    probability_NC = np.exp(scores_NC) / np.exp(scores_NC).sum(axis=1, keepdims=True)
    top1_N = scores_NC.argmax(axis=1)
    assert figures["all"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(label_N, top1_N))
    assert figures["top1"] == pytest.approx(sklearn_metrics.accuracy_score(label_N, top1_N))
    assert figures["top5"] == pytest.approx(
        sklearn_metrics.top_k_accuracy_score(label_N, scores_NC, k=5, labels=range(9))
    )
    assert figures["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(label_N, top1_N, average="macro", labels=range(9), zero_division=0)
    )
    assert figures["nll"] == pytest.approx(sklearn_metrics.log_loss(label_N, probability_NC), rel=1e-5)
    assert figures["head_tail_gap"] == pytest.approx(figures["many"] - figures["few"])
    assert figures["worst_class"] <= figures["harmonic_mean"] + 1e-12 <= figures["all"] + 2e-12


def test_calibration_error_agrees_with_a_loop_over_bins(rng: np.random.Generator) -> None:
    confidence_N, correct_N = rng.random(500).astype(np.float32), rng.random(500) < 0.6
    expected = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence_N > lower) & (confidence_N <= lower + 1 / 15)
        if inside.any():
            gap = abs(correct_N[inside].mean() - confidence_N[inside].astype(float).mean())
            expected += inside.mean() * gap
    assert expected_calibration_error(confidence_N, correct_N) == pytest.approx(expected)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_a_group_without_classes_is_absent_and_so_is_the_gap(rng: np.random.Generator) -> None:
    label_N = np.array([0, 1, 2])
    figures = score(recorded(label_N, rng.normal(size=(3, 3))), ["many", "medium", "medium"])["fused"]
    assert "few" not in figures
    assert "head_tail_gap" not in figures
    assert {"all", "many", "medium"} <= figures.keys()


def test_without_routing_fused_is_base_and_routed_is_absent(predictions: Callable[..., pd.DataFrame]) -> None:
    scores = score(predictions(5, 4, routing=False), SHOTS)
    assert scores["fused"] == scores["base"]
    assert set(scores) == {"zero_shot", "base", "fused"}


def test_harmonic_mean_is_zero_as_soon_as_a_class_is_lost() -> None:
    assert harmonic_mean(np.array([0.5, 1.0])) == pytest.approx(2 / 3)
    assert harmonic_mean(np.array([0.0, 1.0])) == 0
    assert harmonic_mean(np.array([0.5, np.nan])) == 0.5


def test_ties_go_to_the_lower_index_and_k_is_capped() -> None:
    scores_BC = torch.tensor([[1.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
    assert top_classes(scores_BC, 3).tolist() == [[1, 2, 0], [0, 1, 2]]
    assert top_classes(scores_BC, 5).shape == (2, 4)


def test_top_classes_agree_with_topk() -> None:
    scores_BC = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(top_classes(scores_BC, 5), scores_BC.topk(5).indices)


def test_scores_that_are_not_finite_name_branch_and_image() -> None:
    recorder = PredictionRecorder()
    fine = torch.zeros(3, 2).log_softmax(dim=-1)
    recorder.add(torch.zeros(3, dtype=torch.int64), {"base": fine})
    broken = fine.clone()
    broken[1, 0] = torch.nan
    with pytest.raises(ArtifactError, match="base scores of test image 4 "):
        recorder.add(torch.zeros(3, dtype=torch.int64), {"base": broken})


def test_points_have_one_decimal_and_no_negative_zero() -> None:
    assert points(0.8346) == "83.5"
    assert signed_points(-0.0001) == "+0.0"
    assert signed_points(-0.012) == "-1.2"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
