"""The prompts: prompts.yaml, read and filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from pydantic import BaseModel, ConfigDict

from mdpr.params import DIMENSIONS, parse_yaml


class DimensionPrompt(BaseModel):
    """One dimension: what is asked, and how the answer's field is described to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    ask: str
    field: str


class Prompts(BaseModel):
    """prompts.yaml. Placeholders: {class}, {rival}; in `repair` {sentence} and {reason}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    repair: str
    dimensions: Mapping[str, DimensionPrompt]


@dataclass(frozen=True)
class Rejected:
    """An earlier answer that the audit refused, and why."""

    sentence: str
    reason: str


def load_prompts() -> Prompts:
    text = (resources.files("mdpr.knowledge") / "prompts.yaml").read_text(encoding="utf-8")
    prompts = Prompts.model_validate(parse_yaml(text, "prompts.yaml"))
    assert tuple(prompts.dimensions) == DIMENSIONS
    return prompts


def fill(prompts: Prompts, dimension: str, class_text: str, rival_text: str, rejected: Rejected | None) -> str:
    """The user's turn for one class and dimension. Names are put in as they are: braces in them mean nothing."""
    parts = [_fill(prompts.dimensions[dimension].ask, {"class": class_text, "rival": rival_text})]
    if rejected:
        parts.append(_fill(prompts.repair, {"sentence": rejected.sentence, "reason": rejected.reason}))
    return "\n".join(parts)


def _fill(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda mark: values[mark.group(1)], text)
