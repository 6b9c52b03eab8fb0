"""promotion.yaml: what the gate asks of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mdpr.config import read_yaml
from mdpr.errors import ConfigError

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

    confidence: float = Field(gt=0.5, lt=1)
    bootstrap_samples: int = Field(ge=100, le=1_000_000)
    seed: int = Field(ge=0)
    first_model: FirstModel
    later_models: LaterModels

    def with_margin(self, points: float) -> Policy:
        """This policy, which asks for `points` more over the champion in the accuracy of all classes."""
        later = self.later_models
        margins = later.margin_points | {"all": later.margin_points["all"] + points}
        return self.model_copy(update={"later_models": later.model_copy(update={"margin_points": margins})})


def read_policy(path: Path) -> Policy:
    """The gate's policy; `ConfigError` names the key that is missing, unknown or out of range."""
    try:
        return Policy.model_validate(read_yaml(path))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise ConfigError(f"{path}: {key}: {fault['msg']} (keys: {', '.join(Policy.model_fields)})") from None
