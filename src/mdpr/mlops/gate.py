"""The gate: its policy, promotion.yaml, and when the champion gives way. Pure functions of two models' answers.

Accuracies are class-balanced, in percent, differences in percentage points, between the challenger and its opponent:
the champion, or for a first model what costs no tuning (chance, the frozen CLIP's zero-shot answers, and simple
classifiers on its features). With a margin of 0 on `all` a model must be shown to be better: of two equal models the
challenger wins with a probability of 1 - confidence at most, whatever else the policy requires: all of it must hold.

Two models' answers to the same test images are compared image by image (see `mdpr.evaluation.uncertainty`). An
image has one of four outcomes: both right, only the challenger, only the opponent, none. Their counts per class hold
all that class-balanced accuracy needs, of either model and of both together.
worst_quartile is the mean over the quarter of the classes with the lowest accuracy, each model's own: naming the
classes by one model's result would favour the other.

The champion may be older than the data. Images that it was trained on are left out, for both models. Classes are
matched by name and compared if both models have them; those that are new to the champion are judged beside the
opponents of a first model. An answer with a class that the other model lacks is wrong, as it is in use.

Shapes: N test images, C classes, S resamplings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from mdpr.artifacts import Check
from mdpr.errors import ConfigError, printable
from mdpr.evaluation.metrics import expected_calibration_error
from mdpr.evaluation.predictions import final_branch
from mdpr.evaluation.uncertainty import drawn_counts, effective_shares, outcome_counts
from mdpr.params import Section, fault_line, read_yaml

if TYPE_CHECKING:
    import pandas as pd

Group = Literal["all", "many", "medium", "few", "worst_quartile"]
Opponent = Literal["chance", "zero_shot", "nearest_mean", "logistic"]
Percent = Annotated[float, Field(ge=0, le=100)]
Margin = Annotated[float, Field(ge=-100, le=100)]
Passes = Literal["above", "at least", "at most"]

FLOOR, AGAINST = ", percent", ", points against "  # in the names of checks
NAMES: dict[Opponent, str] = {
    "chance": "chance",
    "zero_shot": "zero-shot",
    "nearest_mean": "nearest class mean",
    "logistic": "logistic regression",
}
NEW = "new classes"
ECE, ECE_INCREASE = "calibration error (ECE), percent", "increase of calibration error (ECE), points"
LATENCY, LATENCY_RATIO = "latency of one image, ms", "latency over the champion's"
NO_CLASS = -1  # of the challenger: a class that only the champion has
SHOWN_CLASSES = 5
WORST = "worst_quartile"
WORST_SHARE = 4  # the worst quarter of the classes
WORTH = ((100, 100), (100, 0), (0, 100), (0, 0))  # of each outcome, in percent: to the challenger, to the opponent


# --- the policy ---------------------------------------------------------------------------------------------


class FirstModel(Section):
    """No champion yet: absolute floors, and margins over each of the opponents."""

    floor_percent: dict[Group, Percent]
    opponents: tuple[Opponent, ...]
    margin_points: dict[Group, Margin]
    max_ece_percent: float = Field(gt=0, le=100)
    max_latency_ms: float | None = Field(gt=0)  # None: latency is not measured


class NewClasses(Section):
    """For a challenger with classes that the champion lacks: a gain of its own, that may cost something elsewhere."""

    margin_points: dict[Group, Margin]  # over the classes that both have, in place of `LaterModels.margin_points`
    floor_percent: Percent  # accuracy over the new classes
    tolerance_points: Percent  # how far below each opponent of a first model that accuracy may be


class LaterModels(Section):
    """Against the champion, on the same test images."""

    margin_points: dict[Group, Margin]
    tolerance_points: dict[Group, Percent]
    with_new_classes: NewClasses
    max_ece_increase_points: Percent
    max_latency_ratio: float | None = Field(gt=0)

    @model_validator(mode="after")
    def _judges_all(self) -> LaterModels:
        for name, section in (("", self), ("with_new_classes.", self.with_new_classes)):
            if "all" not in section.margin_points:
                raise ValueError(f"{name}margin_points must name the group all")
        return self


class Policy(Section):
    """No key has a default: a gate is written down or there is none. A group that is not named is not judged."""

    required_groups: tuple[Group, ...]  # a model that has no test image of one is not promoted
    confidence: float = Field(gt=0.5, lt=1)
    bootstrap_samples: int = Field(ge=100, le=1_000_000)
    seed: int = Field(ge=0)
    first_model: FirstModel
    later_models: LaterModels

    def judges_latency(self, *, first: bool) -> bool:
        """Whether latency counts, for a `first` model or a later one."""
        return (self.first_model.max_latency_ms if first else self.later_models.max_latency_ratio) is not None

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


# --- two models compared ------------------------------------------------------------------------------------


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
    policy: Policy,
) -> Comparison:
    """`groups` maps all, many, medium and few to class indices; worst_quartile is added. Bounds are one-sided."""
    tail = 1 - policy.confidence
    outcome_N = 2 * (1 - right_N.astype(np.int64)) + (1 - opponent_right_N.astype(np.int64))
    classes = 1 + max(int(label_N.max()), *(max(indices, default=0) for indices in groups.values()))
    count_C4 = outcome_counts(label_N, outcome_N, classes, 4)
    accuracy, gain = (
        {
            group: Figure(share.mean, share.bounds(tail)[0])
            for group, share in effective_shares(count_C4, worth_4, groups).items()
        }
        for worth_4 in ((100, 100, 0, 0), (0, 100, -100, 0))
    )
    count_C4 = count_C4[count_C4.sum(axis=1) > 0]
    ours, theirs = (float(value) for value in _worst(count_C4[None])[0])
    drawn = drawn_counts(count_C4, resamplings=policy.bootstrap_samples, seed=policy.seed)
    pair_S2 = np.concatenate([_worst(block_SC4) for block_SC4 in drawn])
    accuracy[WORST] = Figure(ours, float(np.quantile(pair_S2[:, 0], tail)))
    gain[WORST] = Figure(ours - theirs, float(np.quantile(pair_S2[:, 0] - pair_S2[:, 1], tail)))
    return Comparison(accuracy, gain)


def _worst(count_SC4: np.ndarray) -> np.ndarray:
    """Accuracy in percent over the worst quartile of the classes, (S, 2): of the challenger and of its opponent."""
    accuracy_SC2 = (count_SC4 @ np.array(WORTH)) / count_SC4[0].sum(axis=1)[:, None]
    worst_classes = -(-accuracy_SC2.shape[1] // WORST_SHARE)
    mean_S2: np.ndarray = np.partition(accuracy_SC2, worst_classes - 1, axis=1)[:, :worst_classes].mean(axis=1)
    return mean_S2


# --- the decision -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A model as the gate sees it: its answers, and what its class indices mean.

    predictions    a row per test image: index, label, image, and the columns of each branch that it has (see
                   `mdpr.evaluation.predictions`). A champion has the challenger's rows and labels, its own answers
    classes        the name behind each class index of its answers
    seen           of a champion: digests of the images that it was trained or chosen on
    latency_R      milliseconds of each request (see `mdpr.mlops.champion`), a champion's in turn with the challenger's
    """

    predictions: pd.DataFrame
    classes: Sequence[str]
    seen: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    latency_R: np.ndarray | None = None


@dataclass(frozen=True)
class Decision:
    """The gate's decision: its reason in one line, and the checks behind it."""

    promote: bool
    reason: str
    checks: tuple[Check, ...] = ()


@dataclass
class _Findings:
    """Checks, failures without a figure, groups that could not be judged, and remarks."""

    checks: list[Check] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    not_judged: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def groups(self, judged: Iterable[str], required: Iterable[str], found: Iterable[str]) -> None:
        """Groups of the policy without a test image: a failure if the policy requires one, else not judged."""
        for group in sorted({*judged, *required} - set(found)):
            lines = self.failed if group in set(required) else self.not_judged
            lines.append(f"{group}: no such class among the test images")

    def decision(self, confidence: float) -> Decision:
        """The decision in words. A missed floor is no comparison, and what could not be judged is no failure."""
        lost = [check for check in self.checks if not check.passed]
        failed = [*map(describe, lost), *self.failed]
        parts = (check.name.partition(AGAINST)[2].partition(",")[0] for check in (lost if failed else self.checks))
        opponents = ", ".join(dict.fromkeys(filter(None, parts)))
        head = f"{'not ' if failed else ''}good enough{' against ' if opponents else ''}{opponents}"
        found = f"failed: {'; '.join(failed)}" if failed else f"{len(self.checks)} of {len(self.checks)} checks passed"
        words = [f"{head} ({confidence:.0%} confidence)", found]
        words += [f"not judged: {'; '.join(self.not_judged)}"] if self.not_judged else []
        words += [f"note: {'; '.join(self.remarks)}"] if self.remarks else []
        return Decision(not failed, ". ".join(words), tuple(self.checks))


def should_promote(
    challenger: Candidate, champion: Candidate | None, groups: Mapping[str, Sequence[int]], policy: Policy
) -> Decision:
    """Whether `challenger` becomes champion. `groups` maps all, many, medium and few to its class indices.

    The order of the images does not matter, and the same arguments give the same decision.
    """
    return _first(challenger, groups, policy) if champion is None else _later(challenger, champion, groups, policy)


def _first(challenger: Candidate, groups: Mapping[str, Sequence[int]], policy: Policy) -> Decision:
    rule, found = policy.first_model, _Findings()
    table = in_order(challenger.predictions)
    label_N, right_N = table["label"].to_numpy(), answered_right(table)
    everyone = compare(right_N, right_N, label_N, groups, policy)
    found.checks += _checks(everyone.accuracy, rule.floor_percent, FLOOR, "at least")
    for opponent in rule.opponents:
        gain = _gain_over(opponent, table, everyone, len(challenger.classes), groups, policy)
        if gain is None:
            found.not_judged.append(f"{NAMES[opponent]}: not measured, since probe left it out (too many images)")
        else:
            found.checks += _checks(gain, rule.margin_points, f"{AGAINST}{NAMES[opponent]}", "above")
    found.checks.append(_check(ECE, _ece_percent(table, right_N), "at most", rule.max_ece_percent))
    if rule.max_latency_ms is not None and challenger.latency_R is not None:
        found.checks.append(_latency(LATENCY, challenger.latency_R, rule.max_latency_ms, policy))
    found.groups({*rule.floor_percent, *rule.margin_points}, policy.required_groups, everyone.accuracy)
    return found.decision(policy.confidence)


def _later(challenger: Candidate, champion: Candidate, groups: Mapping[str, Sequence[int]], policy: Policy) -> Decision:
    rule, found = policy.later_models, _Findings()
    index_of = {name: index for index, name in enumerate(challenger.classes)}
    shared = [index for name, index in index_of.items() if name in set(champion.classes)]
    if not shared:
        return Decision(False, "it knows none of the champion's classes: register this model under another name")
    table, theirs = in_order(challenger.predictions), in_order(champion.predictions)
    if not table[["index", "label"]].equals(theirs[["index", "label"]]):
        return Decision(False, "the champion was scored on other test images: the two cannot be compared")
    label_N, right_N = table["label"].to_numpy(), answered_right(table)
    means_C = np.array([index_of.get(name, NO_CLASS) for name in champion.classes])
    their_right_N = means_C[answer(theirs)] == label_N

    known_N = np.isin(label_N, shared)
    seen_N = np.isin(table["image"].to_numpy(), champion.seen)
    if seen_N.any():
        found.remarks.append(f"{seen_N.sum()} of {len(table)} test images trained the champion and are left out")
    use_N = known_N & ~seen_N
    if not use_N.any():
        return Decision(False, f"the champion was trained on all {known_N.sum()} test images of the classes both know")
    compared = compare(right_N[use_N], their_right_N[use_N], label_N[use_N], groups, policy)

    new = [index for index in range(len(challenger.classes)) if index not in set(shared)]
    gone = [name for name in champion.classes if name not in index_of]
    margin_points = rule.with_new_classes.margin_points if new else rule.margin_points
    against = f"{AGAINST}the champion"
    found.checks += _checks(compared.gain, margin_points, against, "above")
    lowest = {group: -points for group, points in rule.tolerance_points.items()}
    found.checks += _checks(compared.gain, lowest, against, "at least", by_bound=False)
    if new:
        found.remarks.append(f"new to the champion: {_listed([challenger.classes[index] for index in new])}")
        found.checks += _new_classes(rule.with_new_classes, table, new, len(challenger.classes), policy)
    if gone:
        found.remarks.append(f"classes of the champion that are gone: {_listed(gone)}")
    worse = _ece_percent(table[use_N], right_N[use_N]) - _ece_percent(theirs[use_N], their_right_N[use_N])
    found.checks.append(_check(ECE_INCREASE, worse, "at most", rule.max_ece_increase_points))
    mine_R, its_R = challenger.latency_R, champion.latency_R
    if rule.max_latency_ratio is not None and mine_R is not None and its_R is not None:
        found.checks.append(_latency(LATENCY_RATIO, mine_R / its_R, rule.max_latency_ratio, policy))
    found.groups({*margin_points, *rule.tolerance_points}, policy.required_groups, compared.gain)
    return found.decision(policy.confidence)


def _latency(name: str, values_R: np.ndarray, limit: float, policy: Policy) -> Check:
    """Too slow only if it is shown: noise must not refuse a model."""
    median, lower = median_bound(values_R, policy.confidence)
    return _check(f"{name}, lower bound", lower, "at most", limit, median)


def median_bound(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """The median and its one-sided lower confidence bound: the order statistic that the binomial law names."""
    from scipy.stats import binom

    below = int(binom.ppf(1 - confidence, len(values_R), 0.5))
    return float(np.median(values_R)), float(np.sort(values_R)[max(0, below - 1)])


def describe(check: Check) -> str:
    """A check in words: its figure, and the bound. Only differences have a sign."""
    signed = AGAINST in check.name or check.name == ECE_INCREASE
    value, bound = (format(number + 0.0, "+.2f" if signed else ".2f") for number in (check.value, check.threshold))
    is_floor = FLOOR in check.name and check.passes == "at least"
    required = f"the floor is {bound}" if is_floor else f"must be {check.passes} {bound}"
    return f"{check.name}: {value}, {required}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return f"{', '.join(map(printable, names[:SHOWN_CLASSES]))}{more} ({len(names)})"


def _gain_over(
    opponent: Opponent,
    table: pd.DataFrame,
    own: Comparison,
    classes: int,
    groups: Mapping[str, Sequence[int]],
    policy: Policy,
) -> Mapping[str, Figure] | None:
    """By group, the model minus `opponent`; None if it was left out (`mdpr.artifacts.read_baselines`)."""
    if opponent == "chance":
        chance = 100 / classes
        return {group: Figure(it.value - chance, it.lower - chance) for group, it in own.accuracy.items()}
    if f"{opponent}_top1" not in table:
        return None
    right_N = answered_right(table, opponent)
    return compare(answered_right(table), right_N, table["label"].to_numpy(), groups, policy).gain


def _new_classes(
    rule: NewClasses, table: pd.DataFrame, new: Sequence[int], classes: int, policy: Policy
) -> Iterator[Check]:
    """The measured accuracy over the new classes beside a floor and the opponents of a first model.

    Measured, not bounded: a new class has few images, and no bound that holds for them lets it in.
    """
    rows = table[table["label"].isin(new)]
    if rows.empty:
        return
    groups = {"all": new}
    own = compare(answered_right(rows), answered_right(rows), rows["label"].to_numpy(), groups, policy)
    yield _check(f"{NEW}{FLOOR}", own.accuracy["all"].value, "at least", rule.floor_percent)
    for opponent in policy.first_model.opponents:
        gain = _gain_over(opponent, rows, own, classes, groups, policy)
        if gain is not None:
            name = f"{NEW}{AGAINST}{NAMES[opponent]}"
            yield _check(name, gain["all"].value, "at least", -rule.tolerance_points)


def _checks(
    figures: Mapping[str, Figure], limits: Mapping[Group, float], title: str, passes: Passes, *, by_bound: bool = True
) -> Iterator[Check]:
    """A check per group that has test images, judged by its lower bound or else by its value."""
    for group, limit in limits.items():
        if figure := figures.get(group):
            name, value = (", lower bound", figure.lower) if by_bound else ("", figure.value)
            yield _check(f"{group}{title}{name}", value, passes, limit, figure.value)


def _ece_percent(table: pd.DataFrame, right_N: np.ndarray) -> float:
    """Expected calibration error of the model's own answer."""
    return 100 * expected_calibration_error(table[f"{final_branch(table)}_probability"].to_numpy(), right_N)


def _check(name: str, value: float, passes: Passes, threshold: float, estimate: float | None = None) -> Check:
    passed = {"above": value > threshold, "at least": value >= threshold, "at most": value <= threshold}[passes]
    shown = value if estimate is None else estimate
    return Check(name=name, value=value, threshold=threshold, passes=passes, passed=passed, estimate=shown)


def answer(table: pd.DataFrame, branch: str | None = None) -> np.ndarray:
    """The class that each image was given by `branch`; by default by the model's own answer: fused, or base."""
    top1_N: np.ndarray = table[f"{branch or final_branch(table)}_top1"].to_numpy()
    return top1_N


def answered_right(table: pd.DataFrame, branch: str | None = None) -> np.ndarray:
    """Whether each image was answered right; see `answer`."""
    right_N: np.ndarray = answer(table, branch) == table["label"].to_numpy()
    return right_N


def in_order(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows in order of `index`."""
    return predictions.sort_values("index", ignore_index=True)
