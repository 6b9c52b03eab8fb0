"""The gate's policy, promotion.yaml: what must hold for a first model, and for one that follows a champion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mdpr.errors import ConfigError
from mdpr.params import fault_line, read_yaml

Group = Literal["all", "many", "medium", "few", "worst_quartile"]
Opponent = Literal["chance", "zero_shot", "nearest_mean", "logistic"]
Percent = Annotated[float, Field(ge=0, le=100)]
Margin = Annotated[float, Field(ge=-100, le=100)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FirstModel(Frozen):
    """No champion yet: absolute floors, and margins over each of the opponents."""

    floor_percent: dict[Group, Percent]
    opponents: tuple[Opponent, ...]
    margin_points: dict[Group, Margin]
    max_ece_percent: float = Field(gt=0, le=100)
    max_latency_ms: float | None = Field(gt=0)  # None: latency is not measured


class NewClasses(Frozen):
    """The challenger knows classes that the champion does not: a gain of its own, that may cost something elsewhere."""

    margin_points: dict[Group, Margin]  # over the classes that both know, in place of `LaterModels.margin_points`
    floor_percent: Percent  # accuracy over the new classes
    tolerance_points: Percent  # how far below each opponent of a first model that accuracy may be


class LaterModels(Frozen):
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


class Policy(Frozen):
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
