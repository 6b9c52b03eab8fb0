"""Label shift, accuracy and drift on answers whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tests.unit.monitoring.conftest import EVEN_C, NAMES, SHIFTED_C, SOURCE, MakeAnswers

from mdpr.artifacts.prediction_log import Answers
from mdpr.monitoring import shift
from mdpr.monitoring.result import Monitoring, render_monitoring
from mdpr.monitoring.sample import Reference, Sample
from mdpr.monitoring.shift import Thresholds, analyse, calibrate, estimate_label_shares, total_variation

MakeSample = Callable[[Answers], Sample]


def test_no_shift_is_within_the_intervals(reference: Reference, answers: MakeAnswers, sample: MakeSample) -> None:
    found = analyse(reference, sample(answers(EVEN_C, 2000, seed=1)), Thresholds(), resamplings=60)
    shares = [*found.classes.values(), *found.groups.values()]
    within = [share.interval[0] - 0.005 <= share.reference <= share.interval[1] + 0.005 for share in shares]
    assert sum(within) >= len(shares) - 1  # intervals of 95 %
    assert found.label_shift_interval[0] < 0.03
    assert (found.advice, found.accuracy.expected) == ("keep", pytest.approx(found.accuracy.reference, abs=0.01))
    assert all(check.passed for check in found.checks)
    assert found.drift is not None
    assert found.drift.features == "embeddings"
    assert found.drift.interval[0] < 0.53


def test_a_shift_is_recovered_and_the_prior_gains(
    reference: Reference, answers: MakeAnswers, sample: MakeSample
) -> None:
    new = answers(SHIFTED_C, 3000, seed=2)
    assert new.label_N is not None
    found = analyse(reference, sample(new), Thresholds(), resamplings=60)
    true_C = np.bincount(new.label_N, minlength=len(NAMES)) / len(new)
    estimated_C = np.array([found.shares[name] for name in NAMES])
    counted_C = np.array([found.classes[name].counted for name in NAMES])
    assert np.abs(estimated_C - true_C).mean() < min(0.012, np.abs(counted_C - true_C).mean())
    covered = [
        share.interval[0] <= true <= share.interval[1]
        for share, true in zip(found.classes.values(), true_C, strict=True)
    ]
    assert sum(covered) >= len(NAMES) - 1
    assert found.accuracy.expected == pytest.approx((new.top1_N == new.label_N).mean(), abs=0.02)
    assert found.accuracy.gain_interval[0] > 0
    assert found.advice == "retrain"
    assert found.label_shift_interval[0] > 0.3
    assert found.drift is not None
    assert found.drift.interval[0] < 0.55  # label shift alone is no drift
    prior_C = np.array([found.model_prior[name] for name in NAMES])
    adjusted_NK = new.log_probability_NK + np.log(estimated_C / prior_C)[new.class_NK]
    adjusted_N = np.take_along_axis(new.class_NK, adjusted_NK.argmax(axis=1)[:, None], axis=1)[:, 0]
    gain = (adjusted_N == new.label_N).mean() - (new.top1_N == new.label_N).mean()
    assert gain == pytest.approx(found.accuracy.gain_of_prior, abs=0.015)


@pytest.mark.parametrize("embeddings", [True, False])
def test_features_that_move_are_drift(
    reference: Reference, answers: MakeAnswers, sample: MakeSample, embeddings: bool
) -> None:
    new = sample(answers(EVEN_C, 2000, seed=3, moved=1.0))
    found = analyse(reference, new if embeddings else replace(new, embedding_nd=None), Thresholds(), resamplings=20)
    assert found.drift is not None
    assert found.drift.features == ("embeddings" if embeddings else "answers")
    if embeddings:
        assert found.advice == "retrain"
        assert found.drift.interval[0] > 0.65


def test_few_answers_give_no_advice(reference: Reference, answers: MakeAnswers, sample: MakeSample) -> None:
    found = analyse(reference, sample(answers(SHIFTED_C, 5, seed=4)), Thresholds(), resamplings=20)
    assert found.advice == "wait"
    assert found.drift is None


def test_answers_given_under_a_prior_are_judged_with_it(
    reference: Reference, answers: MakeAnswers, sample: MakeSample
) -> None:
    new = sample(answers(SHIFTED_C[::-1].copy(), 3000, seed=5))
    without, within = (
        analyse(reference, replace(new, priors=priors), Thresholds(), resamplings=20)
        for priors in (("",), ("uniform",))
    )
    gain = 100 * without.accuracy.gain_of_prior
    assert without.checks[0].estimate - within.checks[0].estimate == pytest.approx(gain)


def test_the_same_seed_gives_the_same_result(reference: Reference, answers: MakeAnswers, sample: MakeSample) -> None:
    new = sample(answers(SHIFTED_C, 300, seed=6))
    first, second = (analyse(reference, new, Thresholds(), resamplings=20, seed=7) for _ in range(2))
    assert first == second


def test_a_class_without_test_images_is_no_fault(answers: MakeAnswers, sample: MakeSample) -> None:
    old = answers(EVEN_C, 2000, seed=8)
    assert old.label_N is not None
    kept = np.flatnonzero(old.label_N != 5)
    arrays = (old.class_NK, old.log_probability_NK, old.embedding_Nd, old.label_N)
    partial = Reference(SOURCE, Answers(*(array[kept] for array in arrays if array is not None)), None)
    found = analyse(partial, sample(answers(EVEN_C, 500, seed=9)), Thresholds(), resamplings=20)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert min(found.shares.values()) > 0  # else it could be no prior
    assert found.groups == {}


def test_shares_alone_are_those_of_the_whole(reference: Reference, answers: MakeAnswers, sample: MakeSample) -> None:
    new = answers(SHIFTED_C, 500, seed=10)
    whole = analyse(reference, sample(new), Thresholds(), resamplings=20)
    found_C = estimate_label_shares(reference, calibrate(reference), new)
    np.testing.assert_allclose(found_C, list(whole.shares.values()))
    assert total_variation(SHIFTED_C, SHIFTED_C) == 0
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1


def test_the_page_escapes_names_and_loads_nothing(
    reference: Reference, answers: MakeAnswers, sample: MakeSample
) -> None:
    hostile = "<script>alert(1)</script>"
    renamed = replace(
        reference, source=reference.source.model_copy(update={"class_names": (hostile, *NAMES[1:]), "model": hostile})
    )
    found = analyse(renamed, sample(answers(SHIFTED_C, 300, seed=11)), Thresholds(), resamplings=20)
    page = render_monitoring(found)
    assert hostile not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_many_images_are_resampled_in_part_and_scaled(
    reference: Reference, answers: MakeAnswers, sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = sample(answers(SHIFTED_C, 2000, seed=13))
    whole = analyse(reference, new, Thresholds(), resamplings=60)
    for name in ("RESAMPLED_CELLS", "REFIT_CELLS"):
        monkeypatch.setattr(shift, name, 500 * len(NAMES))
    part = analyse(reference, new, Thresholds(), resamplings=60)

    def widths(found: Monitoring) -> float:
        return float(np.mean([high - low for low, high in (share.interval for share in found.classes.values())]))

    assert part.shares == whole.shares
    assert widths(part) == pytest.approx(widths(whole), rel=0.3)
