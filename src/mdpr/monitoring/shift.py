"""New images beside the test set: class shares, expected accuracy, drift of features.

Label shift: calibration on the labelled test set, then expectation maximisation on the unlabelled answers
(`mdpr.probe.prior`). Accuracy: the recall of each class on the test set, weighed by the estimated shares; this assumes
that a class looks as it did. Drift: a classifier learns to distinguish new images from test images, the latter weighed
to the estimated shares, so that label shift by itself is no drift (classifier two-sample test: Lopez-Paz and Oquab,
ICLR 2017). An AUC of 0.5 on held-out images is no drift.

Intervals: new images by bootstrap, test images by Bayesian bootstrap (Rubin, Annals of Statistics 9, 1981), together.

Shapes: N images, C classes, K recorded classes, S resamplings, d width of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mdpr.artifacts import SHOT_GROUPS, Check
from mdpr.artifacts.prediction_log import Answers
from mdpr.evaluation.score_table import Interval
from mdpr.monitoring.result import Accuracy, Drift, Monitoring, Share
from mdpr.monitoring.sample import Reference, Sample
from mdpr.probe.prior import MAX_ITERATIONS, PSEUDO_IMAGES, Calibration, estimate_shares, fit_calibration
from mdpr.progress import track

BIAS_SD = 1.0  # of a normal prior on the bias that calibration gives a class: it holds classes of few images
RESAMPLINGS = 100
LEVEL = 0.95
RESAMPLED_CELLS = 200_000  # recorded classes of a resampled log; its spread is scaled to the whole log's
REFIT_CELLS = 1_000_000  # the same of a resampled test set
REFIT_ITERATIONS = 15  # of a resampled calibration, from the whole one
DRIFT_IMAGES = 2_500  # of each side
DRIFT_RESAMPLINGS = 200
PROFILE_CLASSES = 10  # of the answers, if there are no embeddings
MIN_LOG = -20.0


@dataclass(frozen=True)
class Thresholds:
    """When to retrain: bounds that the estimates must surpass beyond doubt (at the near end of their interval).

    max_drop_points     points of accuracy that the model may be expected to lose
    max_label_shift     total variation between the class shares, 0 to 1
    max_drift_auc       how well a classifier may distinguish new images from test images, 0.5 to 1
    min_images          fewer answers give no advice
    """

    max_drop_points: float = 2.0
    max_label_shift: float = 0.3
    max_drift_auc: float = 0.65
    min_images: int = 200


@dataclass(frozen=True)
class Estimate:
    """Class shares of the new images, and accuracies with them."""

    share_C: np.ndarray
    expected: float
    with_prior: float


def analyse(
    reference: Reference,
    sample: Sample,
    thresholds: Thresholds,
    *,
    resamplings: int = RESAMPLINGS,
    seed: int = 0,
) -> Monitoring:
    """Judge `sample` beside `reference`."""
    generator = np.random.default_rng(seed)
    names = reference.source.class_names
    reference_C = np.bincount(reference.label_N, minlength=len(names)) / len(reference.label_N)
    calibration = calibrate(reference)
    share_C = estimate_label_shares(reference, calibration, sample.answers)
    found = _estimate(reference, calibration, share_C, np.ones(len(reference.label_N)))
    drawn = _resample(reference, calibration, sample, found, resamplings, generator)
    share_SC = np.stack([item.share_C for item in drawn])
    radius = float(np.quantile(total_variation(share_SC, share_C), LEVEL))
    shift = float(total_variation(share_C, reference_C))
    counted_C = sample.counted_C / sample.counted_C.sum()

    def share(members: Sequence[int]) -> Share:
        return Share(
            reference=float(reference_C[members].sum()),
            counted=float(counted_C[members].sum()),
            estimated=float(share_C[members].sum()),
            interval=_interval(share_SC[:, members].sum(axis=1)),
        )

    shots = reference.shots or ()
    accuracy = _accuracy(reference, found, drawn)
    drift = measure_drift(reference, reference_C, share_C, sample, generator)
    served_with_prior = "" not in sample.priors
    checks = _checks(thresholds, accuracy, served_with_prior, shift, radius, drift)
    advice, reason = _advise(thresholds, sample.images, checks, accuracy)
    return Monitoring(
        model=reference.source.model,
        version=reference.source.version,
        model_digest=reference.source.model_digest,
        images=sample.images,
        images_used=len(sample.answers),
        first=sample.first.isoformat(timespec="seconds"),
        last=sample.last.isoformat(timespec="seconds"),
        priors=sample.priors,
        unreadable=sample.faults,
        other_images=sample.other_images,
        dropped=sample.dropped,
        shares=dict(zip(names, share_C.tolist(), strict=True)),
        model_prior=dict(zip(names, np.exp(calibration.log_prior_C).tolist(), strict=True)),
        classes={name: share([index]) for index, name in enumerate(names)},
        groups={
            group: share([index for index, shot in enumerate(shots) if shot == group])
            for group in SHOT_GROUPS
            if group in shots
        },
        label_shift=shift,
        label_shift_interval=(max(0.0, shift - radius), min(1.0, shift + radius)),
        accuracy=accuracy,
        drift=drift,
        checks=checks,
        advice=advice,
        reason=reason,
    )


def total_variation(share_SC: np.ndarray, other_C: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences, 0 to 1."""
    return np.asarray(np.abs(share_SC - other_C).sum(axis=-1) / 2)


# --- class shares and accuracy ------------------------------------------------------------------------------


def calibrate(
    reference: Reference, weight_N: np.ndarray | None = None, start: Calibration | None = None
) -> Calibration:
    """The model's answers to its test set, calibrated; `weight_N` weighs the images."""
    answers = reference.answers
    return fit_calibration(
        answers.log_probability_NK,
        reference.label_N,
        reference.classes,
        class_NK=answers.class_NK,
        weight_N=weight_N,
        shrinkage=reference.classes / (2 * BIAS_SD**2 * len(reference.label_N)),
        fit_scale=True,
        start=start,
        max_iterations=MAX_ITERATIONS if start is None else REFIT_ITERATIONS,
    )


def estimate_label_shares(reference: Reference, calibration: Calibration, answers: Answers) -> np.ndarray:
    """Class shares (C,) of the images behind `answers`, without their labels."""
    count_C = np.bincount(reference.label_N, minlength=reference.classes) + PSEUDO_IMAGES  # a class may be untested
    score_NK = calibration.scores(answers.log_probability_NK, answers.class_NK)
    return estimate_shares(score_NK, answers.class_NK, count_C / count_C.sum())


def _estimate(reference: Reference, calibration: Calibration, share_C: np.ndarray, weight_N: np.ndarray) -> Estimate:
    """Accuracies under `share_C`; `weight_N` weighs the test images."""
    answers = reference.answers
    adjusted_NK = answers.log_probability_NK + (np.log(share_C) - calibration.log_prior_C)[answers.class_NK]
    adjusted_N = np.take_along_axis(answers.class_NK, adjusted_NK.argmax(axis=1)[:, None], axis=1)[:, 0]
    expected, with_prior = (
        _expected_accuracy(reference.label_N, top1_N, share_C, weight_N) for top1_N in (answers.top1_N, adjusted_N)
    )
    return Estimate(share_C, expected, with_prior)


def _expected_accuracy(label_N: np.ndarray, top1_N: np.ndarray, share_C: np.ndarray, weight_N: np.ndarray) -> float:
    """Recall by class, weighed by the shares of the classes that were tested."""
    total_C = np.bincount(label_N, weight_N, minlength=len(share_C))
    right_C = np.bincount(label_N, (top1_N == label_N) * weight_N, minlength=len(share_C))
    tested_C = total_C > 0
    weights = share_C[tested_C] / share_C[tested_C].sum()
    return float(weights @ (right_C[tested_C] / total_C[tested_C]))


def _resample(
    reference: Reference,
    calibration: Calibration,
    sample: Sample,
    found: Estimate,
    resamplings: int,
    generator: np.random.Generator,
) -> list[Estimate]:
    """The estimate under resampled new images and test images.

    Of many images fewer are drawn than there are, and their spread is scaled to the whole (a variance goes with 1 / N).
    """
    answers, tests = sample.answers, reference.answers
    recorded, tested = answers.class_NK.shape[1], len(tests)
    drawn_images = min(len(answers), max(1, RESAMPLED_CELLS // recorded))
    refit_images = min(tested, max(1, REFIT_CELLS // recorded))
    log_scale, refit_scale = np.sqrt(drawn_images / len(answers)), np.sqrt(refit_images / tested)
    estimates = []
    for _ in track(range(resamplings), "resamplings"):
        rows = generator.integers(0, len(answers), drawn_images)
        part = Answers(answers.class_NK[rows], answers.log_probability_NK[rows])
        weight_N = generator.exponential(size=tested)
        if refit_images < tested:
            drawn = generator.integers(0, tested, refit_images)
            known = Answers(tests.class_NK[drawn], tests.log_probability_NK[drawn], None, reference.label_N[drawn])
            refitted = calibrate(replace(reference, answers=known), None, calibration)
        else:
            refitted = calibrate(reference, weight_N, calibration)
        by_log_C, by_both_C = (estimate_label_shares(reference, item, part) for item in (calibration, refitted))
        moved_C = log_scale * (by_log_C - found.share_C) + refit_scale * (by_both_C - by_log_C)
        share_C = np.maximum(found.share_C + moved_C, 1e-12)
        estimates.append(_estimate(reference, refitted, share_C / share_C.sum(), weight_N))
    return estimates


def _interval(value_S: np.ndarray) -> Interval:
    low, high = np.quantile(value_S, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def _accuracy(reference: Reference, found: Estimate, drawn: list[Estimate]) -> Accuracy:
    right_N = reference.answers.top1_N == reference.label_N
    return Accuracy(
        reference=float(right_N.mean()),
        expected=found.expected,
        expected_interval=_interval(np.array([item.expected for item in drawn])),
        with_prior=found.with_prior,
        gain_of_prior=found.with_prior - found.expected,
        gain_interval=_interval(np.array([item.with_prior - item.expected for item in drawn])),
    )


# --- drift of features --------------------------------------------------------------------------------------


def measure_drift(
    reference: Reference,
    reference_C: np.ndarray,
    share_C: np.ndarray,
    sample: Sample,
    generator: np.random.Generator,
) -> Drift | None:
    """How well a classifier distinguishes new from test images beyond the label shift; None with too few images."""
    old_N, old = np.arange(len(reference.answers)), reference.answers
    if sample.embedding_nd is not None and old.embedding_Nd is not None:
        kind: Literal["embeddings", "answers"] = "embeddings"
        old_N = np.flatnonzero(np.isfinite(old.embedding_Nd).all(axis=1))
        old_Nd, new_nd = old.embedding_Nd[old_N], sample.embedding_nd
    else:
        kind = "answers"
        old_Nd, new_nd = _profiles(old.log_probability_NK), _profiles(sample.answers.log_probability_NK)
    first, second = (generator.permutation(len(rows))[:DRIFT_IMAGES] for rows in (old_Nd, new_nd))
    if min(len(first), len(second)) < 2 * PROFILE_CLASSES:
        return None
    label_n = reference.label_N[old_N[first]]
    features = np.concatenate([old_Nd[first], new_nd[second]]).astype(np.float64)
    weights = np.concatenate([share_C[label_n] / reference_C[label_n], np.ones(len(second))])
    is_new = np.arange(len(features)) >= len(first)
    for side in (is_new, ~is_new):
        weights[side] /= weights[side].sum()
    auc, interval = _distinguishing_auc(features, is_new, weights, generator)
    return Drift(features=kind, auc=auc, interval=interval, images=int(min(len(first), len(second))))


def _profiles(log_probability_NK: np.ndarray) -> np.ndarray:
    """Features of answers: the best log-probabilities in order, and the entropy of them."""
    best_Nk = np.maximum(log_probability_NK[:, :PROFILE_CLASSES].astype(np.float64), MIN_LOG)
    entropy_N1 = -(np.exp(best_Nk) * best_Nk).sum(axis=1, keepdims=True)
    return np.hstack([best_Nk, entropy_N1])


def _distinguishing_auc(
    features: np.ndarray, is_new: np.ndarray, weights: np.ndarray, generator: np.random.Generator
) -> tuple[float, Interval]:
    """Weighted AUC of a logistic regression on the half that it has not seen, each half in turn, and its interval."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    half = generator.permutation(len(features)) % 2 == 0
    score = np.empty(len(features))
    for seen in (half, ~half):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        fit_weights = weights[seen] * seen.sum() / weights[seen].sum()
        classifier.fit(features[seen], is_new[seen], logisticregression__sample_weight=fit_weights)
        # Ranks: the scores of two classifiers are comparable only within each.
        unseen = np.flatnonzero(~seen)
        ranked = classifier.decision_function(features[unseen]).argsort().argsort()
        score[unseen] = ranked / len(unseen)
    drawn = [
        roc_auc_score(is_new, score, sample_weight=weights * generator.exponential(size=len(weights)))
        for _ in range(DRIFT_RESAMPLINGS)
    ]
    return float(roc_auc_score(is_new, score, sample_weight=weights)), _interval(np.array(drawn))


# --- advice -------------------------------------------------------------------------------------------------


def _checks(
    thresholds: Thresholds,
    accuracy: Accuracy,
    served_with_prior: bool,
    shift: float,
    radius: float,
    drift: Drift | None,
) -> tuple[Check, ...]:
    """Each judged by the end of its interval that is nearer to no change."""
    expected = accuracy.with_prior if served_with_prior else accuracy.expected
    gained = expected - accuracy.expected
    drop, surely = (100 * (accuracy.reference - value) for value in (expected, accuracy.expected_interval[1] + gained))
    found = [
        ("expected loss of accuracy, points", drop, surely, thresholds.max_drop_points),
        ("label shift, total variation", shift, max(0.0, shift - radius), thresholds.max_label_shift),
    ]
    if drift is not None:
        found.append((f"drift of {drift.features}, AUC", drift.auc, drift.interval[0], thresholds.max_drift_auc))
    return tuple(
        Check(name=name, value=value, estimate=estimate, passes="at most", threshold=most, passed=value <= most)
        for name, estimate, value, most in found
    )


def _advise(
    thresholds: Thresholds, images: int, checks: tuple[Check, ...], accuracy: Accuracy
) -> tuple[Literal["keep", "retrain", "wait"], str]:
    if images < thresholds.min_images:
        return "wait", f"{images} answers are fewer than {thresholds.min_images}: no advice yet"
    failed = [check for check in checks if not check.passed]
    prior = ""
    if accuracy.gain_interval[0] > 0:
        prior = f"; this file as --prior is expected to gain {100 * accuracy.gain_of_prior:.1f} points"
    if not failed:
        return "keep", f"nothing has changed beyond the thresholds{prior}"
    texts = [
        f"{check.name} {check.estimate:.2f} (at least {check.value:.2f}, allowed {check.threshold:g})"
        for check in failed
    ]
    return "retrain", f"{'; '.join(texts)}{prior}"
