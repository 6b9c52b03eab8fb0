"""Every figure against scikit-learn, torchmetrics or a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from mdpr.errors import ArtifactError
from mdpr.evaluation.metrics import (
    CALIBRATION_BINS,
    ClasswiseCalibration,
    class_recall,
    expected_calibration_error,
    geometric_mean,
    group_means,
    harmonic_mean,
    negative_log_likelihood,
    reliability,
    score,
    score_branch,
)
from mdpr.evaluation.predictions import PredictionRecorder, top_classes
from mdpr.evaluation.score_table import BRANCHES, points, signed_points

CLASSES = 5
SHOTS = ["many", "many", "medium", "few", "few"]
EXACT = {"rel": 0, "abs": 1e-9}
answers = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=60)
seeds = st.integers(0, 2**32 - 1)
CLASSWISE = dict.fromkeys(BRANCHES, 0.0)


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
    expected = sklearn_metrics.recall_score(label_N, top1_N, labels=tested, average=None, zero_division=0)
    np.testing.assert_allclose(recall_C[tested], expected, rtol=0, atol=1e-9)
    assert np.isnan(np.delete(recall_C, tested)).all()
    means = group_means(recall_C, SHOTS)
    assert means["all"] == pytest.approx(expected.mean(), **EXACT)
    for group in ("many", "medium", "few"):
        members = [index for index in tested if SHOTS[index] == group]
        assert (group in means) == bool(members)
        if members:
            assert means[group] == pytest.approx(np.mean([recall_C[index] for index in members]), **EXACT)
    if (expected > 0).all():
        assert harmonic_mean(recall_C[tested]) == pytest.approx(stats.hmean(expected), **EXACT)
        assert geometric_mean(recall_C[tested]) == pytest.approx(stats.gmean(expected), **EXACT)
    else:
        assert harmonic_mean(recall_C[tested]) == geometric_mean(recall_C[tested]) == 0


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_scores_of_random_predictions_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label_N = np.concatenate([np.arange(9), rng.integers(0, 9, 40)])
    scores_NC = rng.normal(size=(len(label_N), 9)).astype(np.float32)
    shots = ["many"] * 3 + ["medium"] * 3 + ["few"] * 3
    table = recorded(label_N, scores_NC)
    figures = score(table, shots, CLASSWISE)["base"]
    top1_N = scores_NC.argmax(axis=1)
    assert figures["all"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(label_N, top1_N), **EXACT)
    assert figures["top1"] == pytest.approx(sklearn_metrics.accuracy_score(label_N, top1_N), **EXACT)
    top5 = sklearn_metrics.top_k_accuracy_score(label_N, scores_NC, k=5, labels=range(9))
    assert figures["top5"] == pytest.approx(top5, **EXACT)
    macro_f1 = sklearn_metrics.f1_score(label_N, top1_N, average="macro", labels=range(9), zero_division=0)
    assert figures["macro_f1"] == pytest.approx(macro_f1, **EXACT)
    assert figures["head_tail_gap"] == pytest.approx(figures["many"] - figures["few"], **EXACT)
    assert figures["worst_class"] <= figures["harmonic_mean"] + 1e-12
    assert figures["harmonic_mean"] <= figures["geometric_mean"] + 1e-12 <= figures["all"] + 2e-12


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_calibration_and_likelihood_agree_with_torchmetrics_and_scikit_learn(seed: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, 7, 60)
    probability_NC = rng.dirichlet(np.ones(7), 60)
    prob, label = torch.from_numpy(probability_NC), torch.from_numpy(label_N)
    correct_N = probability_NC.argmax(axis=1) == label_N
    theirs = multiclass_calibration_error(prob, label, num_classes=7, n_bins=CALIBRATION_BINS, norm="l1")
    # torchmetrics keeps confidence and accuracy in float32, whatever it is given
    assert expected_calibration_error(probability_NC.max(axis=1), correct_N) == pytest.approx(float(theirs), abs=2e-7)
    true_N = probability_NC[np.arange(60), label_N]
    log_loss = sklearn_metrics.log_loss(label_N, probability_NC, labels=range(7))
    assert negative_log_likelihood(true_N) == pytest.approx(log_loss, **EXACT)

    classwise = ClasswiseCalibration()
    for part in torch.arange(60).split(17):
        classwise.add(label[part], prob[part].log())
    one_against_rest = [
        float(_calibration_of_positives(probability_NC[:, index], label_N == index)) for index in range(7)
    ]
    assert classwise.error() == pytest.approx(np.mean(one_against_rest), **EXACT)


def _calibration_of_positives(probability_N: np.ndarray, positive_N: np.ndarray) -> float:
    total = 0.0
    for lower in np.arange(CALIBRATION_BINS) / CALIBRATION_BINS:
        inside = (probability_N > lower) & (probability_N <= lower + 1 / CALIBRATION_BINS)
        if inside.any():
            total += inside.mean() * abs(positive_N[inside].mean() - probability_N[inside].mean())
    return total


def test_calibration_error_agrees_with_a_loop_over_bins(rng: np.random.Generator) -> None:
    confidence_N, correct_N = rng.random(500), rng.random(500) < 0.6
    expected = _calibration_of_positives(confidence_N, correct_N)
    assert expected_calibration_error(confidence_N, correct_N) == pytest.approx(expected, **EXACT)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    bins = reliability(confidence_N, correct_N)
    again = (bins["images"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / bins["images"].sum()
    assert again == pytest.approx(expected, **EXACT)
    assert bins["images"].sum() == 500
    assert ((bins["low"] < bins["confidence"]) & (bins["confidence"] <= bins["high"])).all()


def test_a_group_without_classes_is_absent_and_so_is_the_gap(rng: np.random.Generator) -> None:
    label_N = np.array([0, 1, 2])
    shots = ["many", "medium", "medium"]
    figures = score(recorded(label_N, rng.normal(size=(3, 3))), shots, CLASSWISE)["fused"]
    assert "few" not in figures
    assert "head_tail_gap" not in figures
    assert {"all", "many", "medium"} <= figures.keys()


def test_without_routing_fused_is_base_and_routed_is_absent(predictions: Callable[..., pd.DataFrame]) -> None:
    scores = score(predictions(5, 4, routing=False), SHOTS, CLASSWISE)
    assert scores["fused"] == scores["base"]
    assert set(scores) == {"chance", "zero_shot", "base", "fused"}
    assert scores["chance"] == dict.fromkeys(("all", "many", "medium", "few"), 0.2)


def test_means_over_classes_are_zero_as_soon_as_a_class_is_lost() -> None:
    assert harmonic_mean(np.array([0.5, 1.0])) == pytest.approx(2 / 3)
    assert geometric_mean(np.array([0.25, 1.0])) == pytest.approx(0.5)
    assert harmonic_mean(np.array([0.0, 1.0])) == geometric_mean(np.array([0.0, 1.0])) == 0


def test_a_class_without_test_images_enters_no_mean_over_classes() -> None:
    scores_NC = np.eye(3)[[0, 1, 1]]  # recall 1/2 and 1; class 2 is not tested
    figures = score_branch(recorded(np.array([0, 0, 1]), scores_NC), "base", ["few"] * 3)
    assert figures["harmonic_mean"] == pytest.approx(2 / 3)
    assert figures["geometric_mean"] == pytest.approx(0.5**0.5)
    assert figures["worst_class"] == 0.5


def test_equal_scores_are_a_guess_and_not_the_share_of_the_first_class() -> None:
    # Every class in turn, and class by class: no order of the test set may help.
    for label_N in (np.arange(4000) % 10, np.repeat(np.arange(10), 400)):
        figures = score_branch(recorded(label_N, np.zeros((4000, 10))), "base", ["few"] * 10)
        assert figures["top1"] == pytest.approx(0.1, abs=0.02)  # four standard errors
        assert figures["top5"] == pytest.approx(0.5, abs=0.035)
        assert figures["worst_class"] > 0.03


def test_ties_are_ordered_the_same_each_time_and_only_among_themselves() -> None:
    scores_BC = torch.tensor([[1.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0]]).repeat(50, 1)
    index_B = torch.arange(100)
    top_Bk = top_classes(scores_BC, 3, index_B)
    assert torch.equal(top_Bk, top_classes(scores_BC, 3, index_B))
    assert {tuple(row) for row in top_Bk[::2].tolist()} == {(1, 2, 0), (2, 1, 0)}
    assert {row[0] for row in top_Bk[1::2].tolist()} == {0, 1, 2, 3}
    assert torch.equal(top_Bk[40:50], top_classes(scores_BC[40:50], 3, index_B[40:50]))  # batches do not matter
    assert top_classes(scores_BC, 5, index_B).shape == (100, 4)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_top_classes_agree_with_topk(seed: int) -> None:
    scores_BC = torch.randn(20, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.equal(top_classes(scores_BC, 5, torch.arange(20)), scores_BC.topk(5).indices)


def test_a_table_is_the_same_in_batches_of_any_size(rng: np.random.Generator) -> None:
    scores = {"base": torch.as_tensor(rng.integers(0, 3, (70, 9))).float().log_softmax(dim=-1)}  # with many ties
    label_N, weights_NV = torch.as_tensor(rng.integers(0, 9, 70)), torch.as_tensor(rng.random((70, 5)))
    tables = []
    for sizes in ([70], [1] * 70, [33, 1, 2, 34]):
        recorder = PredictionRecorder()
        for rows in torch.arange(70).split(sizes):
            part = {branch: scores_NC[rows] for branch, scores_NC in scores.items()}
            recorder.add(label_N[rows], part, {"routing": weights_NV[rows]})
        tables.append(recorder.table())
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_name_branch_and_image(value: float) -> None:
    recorder = PredictionRecorder()
    fine = torch.zeros(3, 2).log_softmax(dim=-1)
    recorder.add(torch.zeros(3, dtype=torch.int64), {"base": fine})
    broken = fine.clone()
    broken[1, 0] = value
    with pytest.raises(ArtifactError, match="base scores of test image 4 "):
        recorder.add(torch.zeros(3, dtype=torch.int64), {"base": broken})


def test_points_have_one_decimal_and_no_negative_zero() -> None:
    assert points(0.8346) == "83.5"
    assert signed_points(-0.0001) == "+0.0"
    assert signed_points(-0.012) == "-1.2"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
