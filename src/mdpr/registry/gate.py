"""The gate: when the champion gives way. Pure functions of two models' answers to the same test images.

Accuracies are class-balanced, differences in percentage points, between the challenger and its opponent: the
champion, or for a first model the frozen CLIP's own zero-shot answers. With a margin of 0 on `all` a model must be
shown to be better: of two equal models the challenger wins with a probability of 1 - confidence at most, whatever
else is asked for, for everything asked for must hold.

Shapes: N test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdpr.artifacts import Check
from mdpr.registry.comparison import Figure, compare
from mdpr.registry.policy import FirstModel, Group, LaterModels, Policy

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Latency:
    """Milliseconds to answer for one image, and the device that took them: other devices do not compare."""

    ms: float
    device: str


@dataclass(frozen=True)
class Candidate:
    """A model as the gate sees it: its answers, and digests of the classes and the test images behind them.

    predictions    a row an image: index, label, zero_shot_top1, base_top1, and fused_top1 where it routes
    ece            expected calibration error of the model's own answer, a fraction
    """

    predictions: pd.DataFrame
    label_set: str
    test_set: str
    ece: float
    latency: Latency | None = None


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str
    checks: tuple[Check, ...] = ()


def should_promote(
    challenger: Candidate, champion: Candidate | None, groups: Mapping[str, Sequence[int]], policy: Policy
) -> Decision:
    """Whether `challenger` becomes champion. `groups` maps all, many, medium and few to class indices.

    The order of the images does not matter, and the same arguments give the same decision.
    """
    if champion and champion.label_set != challenger.label_set:
        return Decision(False, "the champion knows other classes: register this model under another name")
    if champion and not same_test(challenger, champion):
        return Decision(False, "the champion was scored on other test images: the two cannot be compared")
    right_N = answered_right(challenger.predictions)
    opponent_right_N = (
        answered_right(champion.predictions) if champion else answered_right(challenger.predictions, "zero_shot")
    )
    comparison = compare(
        right_N,
        opponent_right_N,
        in_order(challenger.predictions)["label"].to_numpy(),
        groups,
        confidence=policy.confidence,
        resamplings=policy.bootstrap_samples,
        seed=policy.seed,
    )
    if champion:
        rule, name = policy.later_models, "the champion"
        checks = [*_margins(rule.margin_points, comparison.gain, name), *_later(rule, comparison.gain)]
        checks += _bounds_of_later(rule, challenger, champion)
        asked = {*rule.margin_points, *rule.tolerance_points}
        compared = _same_device(challenger, champion)
    else:
        first, name = policy.first_model, "zero-shot"
        checks = [*_floors(first, comparison.accuracy), *_margins(first.margin_points, comparison.gain, name)]
        checks += _bounds_of_first(first, challenger)
        asked = {*first.floor_percent, *first.margin_points}
        compared = challenger.latency is not None
    notes = [f"{group}: no such class among the test images" for group in sorted(asked - set(comparison.gain))]
    notes += [] if compared else ["latency: not measured on the same device, not judged"]
    return _decide(checks, notes, name, policy.confidence)


def _decide(checks: Sequence[Check], notes: Sequence[str], opponent: str, confidence: float) -> Decision:
    promote = all(check.passed for check in checks)
    failed = [describe(check) for check in checks if not check.passed]
    words = [f"failed: {'; '.join(failed)}"] if failed else [describe(check) for check in checks]
    verdict = "good enough" if promote else "not good enough"
    details = "; ".join([f"{confidence:.0%} confidence", *words, *notes])
    return Decision(promote, f"{verdict} against {opponent} ({details})", tuple(checks))


def describe(check: Check) -> str:
    """A check in words: its figure, and what it had to be."""
    return f"{check.name} {check.value:+.2f}, must be {check.passes} {check.threshold + 0.0:+.2f}"


def _floors(rule: FirstModel, accuracy: Mapping[str, Figure]) -> Iterator[Check]:
    for group, floor in rule.floor_percent.items():
        if group in accuracy:
            figure = accuracy[group]
            yield _check(f"{group}, percent, lower bound", figure.lower, "at least", floor, figure.value)


def _margins(margin_points: Mapping[Group, float], gain: Mapping[str, Figure], opponent: str) -> Iterator[Check]:
    for group, margin in margin_points.items():
        if group in gain:
            name = f"{group}, points against {opponent}, lower bound"
            yield _check(name, gain[group].lower, "above", margin, gain[group].value)


def _later(rule: LaterModels, gain: Mapping[str, Figure]) -> Iterator[Check]:
    for group, tolerance in rule.tolerance_points.items():
        if group in gain:
            yield _check(f"{group}, points against the champion", gain[group].value, "at least", -tolerance)


def _bounds_of_first(rule: FirstModel, challenger: Candidate) -> Iterator[Check]:
    yield _check("calibration error (ECE)", challenger.ece, "at most", rule.max_ece)
    if challenger.latency:
        yield _check("latency of one image, ms", challenger.latency.ms, "at most", rule.max_latency_ms)


def _bounds_of_later(rule: LaterModels, challenger: Candidate, champion: Candidate) -> Iterator[Check]:
    yield _check("increase of calibration error (ECE)", challenger.ece - champion.ece, "at most", rule.max_ece_increase)
    if challenger.latency and champion.latency and _same_device(challenger, champion):
        ratio = challenger.latency.ms / champion.latency.ms
        yield _check("latency over the champion's", ratio, "at most", rule.max_latency_ratio)


def _same_device(challenger: Candidate, champion: Candidate) -> bool:
    both = challenger.latency, champion.latency
    return both[0] is not None and both[1] is not None and both[0].device == both[1].device


def _check(name: str, value: float, passes: str, threshold: float, estimate: float | None = None) -> Check:
    passed = {"above": value > threshold, "at least": value >= threshold, "at most": value <= threshold}[passes]
    return Check.model_validate(
        {
            "name": name,
            "value": value,
            "threshold": threshold,
            "passes": passes,
            "passed": passed,
            "estimate": value if estimate is None else estimate,
        }
    )


def answered_right(predictions: pd.DataFrame, branch: str | None = None) -> np.ndarray:
    """Whether each image was answered right, in order of index; by default by the model's own answer.

    That is fused, or base where routing is off and there is no fused branch.
    """
    branch = branch or ("fused" if "fused_top1" in predictions.columns else "base")
    ordered = in_order(predictions)
    right: np.ndarray = (ordered[f"{branch}_top1"] == ordered["label"]).to_numpy()
    return right


def same_test(first: Candidate, second: Candidate) -> bool:
    """Whether both were scored on the same images with the same labels."""
    left, right = (in_order(item.predictions)[["index", "label"]] for item in (first, second))
    return first.test_set == second.test_set and left.equals(right)


def in_order(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions.sort_values("index", ignore_index=True)
