"""The gate: when the champion gives way. Pure functions of two models' answers to the same test images.

A group of classes is judged by the difference in class-balanced accuracy, in percentage points, between the
challenger and its opponent: the champion, or for a first model the frozen CLIP's own zero-shot answers. It
passes where the lower confidence bound of that difference (paired bootstrap, see `mdpr.bootstrap`) lies above
minus the group's tolerance. With a tolerance of 0 a model must be shown to be better: of two equal models the
challenger wins with a probability of 1 - confidence at most.

Shapes: N test images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mdpr.artifacts import Check
from mdpr.bootstrap import bootstrap_means
from mdpr.config import read_yaml
from mdpr.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Group = Literal["all", "many", "medium", "few"]
Points = Annotated[float, Field(ge=0, le=100)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(Frozen):
    """How far below its opponent a group may lie, in percentage points. A group not named is not judged."""

    tolerance_points: dict[Group, Points]

    @model_validator(mode="after")
    def _judges_all(self) -> Rule:
        if "all" not in self.tolerance_points:
            raise ValueError("tolerance_points must name the group all")
        return self


class Policy(Frozen):
    """promotion.yaml. No key has a default: a gate is written down or there is none."""

    confidence: float = Field(gt=0.5, lt=1)
    bootstrap_samples: int = Field(ge=100, le=1_000_000)
    seed: int = Field(ge=0)
    first_model: Rule
    later_models: Rule


@dataclass(frozen=True)
class Candidate:
    """A model as the gate sees it: its answers, and digests of the classes and the test images behind them.

    predictions    a row an image: index, label, zero_shot_top1, base_top1, and fused_top1 where it routes
    """

    predictions: pd.DataFrame
    label_set: str
    test_set: str


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str
    checks: tuple[Check, ...] = ()


def read_policy(path: Path) -> Policy:
    """The gate's policy; `ConfigError` names the key that is missing, unknown or out of range."""
    try:
        return Policy.model_validate(read_yaml(path))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise ConfigError(f"{path}: {key}: {fault['msg']} (keys: {', '.join(Policy.model_fields)})") from None


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
    if champion:
        opponent, rule = "the champion", policy.later_models
        opponent_right_N = answered_right(champion.predictions)
    else:
        opponent, rule = "zero-shot", policy.first_model
        opponent_right_N = answered_right(challenger.predictions, "zero_shot")
    label_N = in_order(challenger.predictions)["label"].to_numpy()
    gains = compare(right_N, opponent_right_N, label_N, groups, policy)
    return _judge(gains, rule, opponent, policy)


def compare(
    right_N: np.ndarray,
    opponent_right_N: np.ndarray,
    label_N: np.ndarray,
    groups: Mapping[str, Sequence[int]],
    policy: Policy,
) -> dict[str, tuple[float, float]]:
    """Each tested group's difference in class-balanced accuracy and its lower bound, in points."""
    import numpy as np

    outcome_N = 1 - right_N.astype(np.int64) + opponent_right_N  # 0 won, 1 alike, 2 lost
    class_count = int(label_N.max()) + 1
    count_CK = np.bincount(label_N * 3 + outcome_N, minlength=class_count * 3).reshape(class_count, 3)
    sampled = bootstrap_means(count_CK, (100, 0, -100), groups, resamplings=policy.bootstrap_samples, seed=policy.seed)
    image_C = count_CK.sum(axis=1)
    gain_C = 100 * (count_CK[:, 0] - count_CK[:, 2]) / np.maximum(image_C, 1)
    gains = {}
    for group, mean_S in sampled.items():
        tested = [index for index in groups[group] if index < class_count and image_C[index]]
        gains[group] = float(gain_C[tested].mean()), float(np.quantile(mean_S, 1 - policy.confidence))
    return gains


def _judge(gains: Mapping[str, tuple[float, float]], rule: Rule, opponent: str, policy: Policy) -> Decision:
    checks, notes = [], []
    for group, tolerance in rule.tolerance_points.items():
        if group not in gains:
            notes.append(f"{group}: no such class among the test images")
            continue
        gain, bound = gains[group]
        name = f"{group}, points against {opponent}, lower bound"
        checks.append(Check(name=name, value=bound, threshold=-tolerance, passed=bound > -tolerance))
        notes.append(f"{group} {gain:+.2f}, lower bound {bound:+.2f}, must exceed {0 - tolerance:+.2f}")
    promote = bool(checks) and all(check.passed for check in checks)
    verdict = "good enough" if promote else "not good enough"
    details = f"points, {policy.confidence:.0%} confidence: {'; '.join(notes)}"
    return Decision(promote, f"{verdict} against {opponent} ({details})", tuple(checks))


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
