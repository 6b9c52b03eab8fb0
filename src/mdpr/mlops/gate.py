"""The gate: when the champion gives way, by the policy in promotion.yaml. Pure functions of two models' answers.

Accuracies are class-balanced, in percent, differences in percentage points, between the challenger and its opponent:
the champion, or for a first model the frozen CLIP's own zero-shot answers. With a margin of 0 on `all` a model must be
shown to be better: of two equal models the challenger wins with a probability of 1 - confidence at most, whatever
else the policy requires, for all of it must hold.

Two models' answers to the same test images are compared image by image (see `mdpr.evaluation.uncertainty`). An
image has one of four outcomes: both right, only the challenger, only the opponent, none. Their counts per class hold
all that class-balanced accuracy needs, of either model and of both together.
worst_quartile is the mean over the quarter of the classes with the lowest accuracy, each model's own: naming the
classes by one model's result would favour the other.

Shapes: N test images, C classes, S resamplings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mdpr.artifacts import Check
from mdpr.errors import ConfigError
from mdpr.evaluation.uncertainty import drawn_counts, effective_shares, outcome_counts
from mdpr.params import fault_line, read_yaml

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


Group = Literal["all", "many", "medium", "few", "worst_quartile"]
Percent = Annotated[float, Field(ge=0, le=100)]
Margin = Annotated[float, Field(ge=-100, le=100)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FirstModel(Frozen):
    """No champion yet: absolute floors, and margins over the frozen CLIP's own zero-shot answers."""

    floor_percent: dict[Group, Percent]
    margin_points: dict[Group, Margin]
    max_ece: float = Field(gt=0, le=1)
    max_latency_ms: float = Field(gt=0)


class LaterModels(Frozen):
    """Against the champion, on the same test images."""

    margin_points: dict[Group, Margin]
    tolerance_points: dict[Group, Percent]
    max_ece_increase: float = Field(ge=0, le=1)
    max_latency_ratio: float = Field(gt=0)

    @model_validator(mode="after")
    def _judges_all(self) -> LaterModels:
        if "all" not in self.margin_points:
            raise ValueError("margin_points must name the group all")
        return self


class Policy(Frozen):
    """No key has a default: a gate is written down or there is none. A group that is not named is not judged."""

    required_groups: tuple[Group, ...]  # a model that has no test image of one is not promoted
    confidence: float = Field(gt=0.5, lt=1)
    bootstrap_samples: int = Field(ge=100, le=1_000_000)
    seed: int = Field(ge=0)
    first_model: FirstModel
    later_models: LaterModels

    def with_margin(self, points: float) -> Policy:
        """This policy with a margin over the champion, in the accuracy of all classes, that is higher by `points`."""
        later = self.later_models
        margins = later.margin_points | {"all": later.margin_points["all"] + points}
        return self.model_copy(update={"later_models": later.model_copy(update={"margin_points": margins})})


def read_policy(path: Path) -> Policy:
    """The gate's policy; `ConfigError` names the key that is missing, unknown or out of range."""
    try:
        return Policy.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {fault_line(error, Policy)}") from None


FLOOR, OPPONENT = ", percent", ", points against "  # in the names of checks
WORST = "worst_quartile"
WORST_SHARE = 4  # the worst quarter of the classes
WORTH = ((100, 100), (100, 0), (0, 100), (0, 0))  # of each outcome, in percent: to the challenger, to the opponent


@dataclass(frozen=True)
class Figure:
    """A group's accuracy, or a difference of accuracies, in percentage points, and its lower confidence bound."""

    value: float
    lower: float


@dataclass(frozen=True)
class Comparison:
    """By group: the challenger's accuracy, and challenger minus opponent. Groups without a test image are absent."""

    accuracy: Mapping[str, Figure]
    gain: Mapping[str, Figure]


def compare(
    right_N: np.ndarray,
    opponent_right_N: np.ndarray,
    label_N: np.ndarray,
    groups: Mapping[str, Sequence[int]],
    *,
    confidence: float,
    resamplings: int,
    seed: int,
) -> Comparison:
    """`groups` maps all, many, medium and few to class indices; worst_quartile is added. Bounds are one-sided."""
    import numpy as np

    outcome_N = 2 * (1 - right_N.astype(np.int64)) + (1 - opponent_right_N.astype(np.int64))
    classes = 1 + max(int(label_N.max()), *(max(indices, default=0) for indices in groups.values()))
    count_C4 = outcome_counts(label_N, outcome_N, classes, 4)
    accuracy, gain = (
        {
            group: Figure(share.mean, share.bounds(1 - confidence)[0])
            for group, share in effective_shares(count_C4, worth_4, groups).items()
        }
        for worth_4 in ((100, 100, 0, 0), (0, 100, -100, 0))
    )
    count_C4 = count_C4[count_C4.sum(axis=1) > 0]
    ours, theirs = (float(value) for value in _worst(count_C4[None])[0])
    drawn = drawn_counts(count_C4, resamplings=resamplings, seed=seed)
    pair_S2 = np.concatenate([_worst(block_SC4) for block_SC4 in drawn])
    accuracy[WORST] = Figure(ours, float(np.quantile(pair_S2[:, 0], 1 - confidence)))
    gain[WORST] = Figure(ours - theirs, float(np.quantile(pair_S2[:, 0] - pair_S2[:, 1], 1 - confidence)))
    return Comparison(accuracy, gain)


def _worst(count_SC4: np.ndarray) -> np.ndarray:
    """Accuracy in percent over the worst quartile of the classes, (S, 2): of the challenger and of its opponent."""
    import numpy as np

    accuracy_SC2 = (count_SC4 @ np.array(WORTH)) / count_SC4[0].sum(axis=1)[:, None]
    worst_classes = -(-accuracy_SC2.shape[1] // WORST_SHARE)
    mean_S2: np.ndarray = np.partition(accuracy_SC2, worst_classes - 1, axis=1)[:, :worst_classes].mean(axis=1)
    return mean_S2


@dataclass(frozen=True)
class Latency:
    """Milliseconds to answer for one image, and the device that took them: other devices do not compare."""

    ms: float
    device: str


@dataclass(frozen=True)
class Candidate:
    """A model as the gate sees it: its answers, and digests of the classes and the test images behind them.

    predictions    a row per image: index, label, zero_shot_top1, base_top1, and fused_top1 if it routes
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
        checks += _limits_of_later(rule, challenger, champion)
        judged = {*rule.margin_points, *rule.tolerance_points}
        compared = _same_device(challenger, champion)
    else:
        first, name = policy.first_model, "zero-shot"
        checks = [*_floors(first, comparison.accuracy), *_margins(first.margin_points, comparison.gain, name)]
        checks += _limits_of_first(first, challenger)
        judged = {*first.floor_percent, *first.margin_points}
        compared = challenger.latency is not None
    absent = sorted({*judged, *policy.required_groups} - set(comparison.gain))
    lines = {group: f"{group}: no such class among the test images" for group in absent}
    failed = [describe(check) for check in checks if not check.passed]
    failed += [line for group, line in lines.items() if group in policy.required_groups]
    notes = [line for group, line in lines.items() if group not in policy.required_groups]
    notes += [] if compared else ["latency: not measured on the same device"]
    reason = _reason(checks, failed, notes, name, policy.confidence)
    return Decision(not failed, reason, tuple(checks))


def _reason(
    checks: Sequence[Check], failed: Sequence[str], notes: Sequence[str], opponent: str, confidence: float
) -> str:
    """The decision in words. A missed floor is no comparison, and what could not be judged is no failure."""
    lost = any(OPPONENT in check.name for check in checks if not check.passed)
    head = ("not good enough" if failed else "good enough") + (f" against {opponent}" if lost or not failed else "")
    parts = [f"{head} ({confidence:.0%} confidence)"]
    parts += [f"failed: {'; '.join(failed)}"] if failed else [f"passed: {'; '.join(map(describe, checks))}"]
    parts += [f"not judged: {'; '.join(notes)}"] if notes else []
    return ". ".join(parts)


def describe(check: Check) -> str:
    """A check in words: its figure, and the bound. Only differences have a sign."""
    signed = OPPONENT in check.name or "increase" in check.name
    value, bound = (format(number + 0.0, "+.2f" if signed else ".2f") for number in (check.value, check.threshold))
    required = f"the floor is {bound}" if FLOOR in check.name else f"must be {check.passes} {bound}"
    return f"{check.name}: {value}, {required}"


def _floors(rule: FirstModel, accuracy: Mapping[str, Figure]) -> Iterator[Check]:
    for group, floor in rule.floor_percent.items():
        if group in accuracy:
            figure = accuracy[group]
            yield _check(f"{group}{FLOOR}, lower bound", figure.lower, "at least", floor, figure.value)


def _margins(margin_points: Mapping[Group, float], gain: Mapping[str, Figure], opponent: str) -> Iterator[Check]:
    for group, margin in margin_points.items():
        if group in gain:
            name = f"{group}{OPPONENT}{opponent}, lower bound"
            yield _check(name, gain[group].lower, "above", margin, gain[group].value)


def _later(rule: LaterModels, gain: Mapping[str, Figure]) -> Iterator[Check]:
    for group, tolerance in rule.tolerance_points.items():
        if group in gain:
            yield _check(f"{group}{OPPONENT}the champion", gain[group].value, "at least", -tolerance)


def _limits_of_first(rule: FirstModel, challenger: Candidate) -> Iterator[Check]:
    yield _check("calibration error (ECE)", challenger.ece, "at most", rule.max_ece)
    if challenger.latency:
        yield _check("latency of one image, ms", challenger.latency.ms, "at most", rule.max_latency_ms)


def _limits_of_later(rule: LaterModels, challenger: Candidate, champion: Candidate) -> Iterator[Check]:
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
