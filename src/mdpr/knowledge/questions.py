"""The questions for a chat model: one per class and dimension, each with the key under which its answer is kept.

The texts are in prompts.yaml. An answer is one sentence in JSON; its schema describes the field per dimension.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from mdpr.artifacts import ClassInfo
from mdpr.params import DIFFERENTIAL, DIMENSIONS, LlmParams, parse_yaml

Place = tuple[int, str]  # class index, dimension
Schema = Mapping[str, Any]  # a function's definition in JSON Schema: title, description, properties


class DimensionPrompt(BaseModel):
    """The question of one dimension, and the description of the answer's field."""

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

    def schemas(self) -> dict[str, Schema]:
        """The form of an answer, per dimension."""
        return {
            dimension: {
                "title": dimension,
                "description": prompt.field,
                "type": "object",
                "properties": {"sentence": {"type": "string", "description": prompt.field}},
                "required": ["sentence"],
                "additionalProperties": False,
            }
            for dimension, prompt in self.dimensions.items()
        }


@dataclass(frozen=True)
class Rejected:
    """An earlier answer that the audit rejected, and the reason."""

    sentence: str
    reason: str


@dataclass(frozen=True)
class Question:
    """One call. `key` is the digest of everything that shapes the answer."""

    key: str
    class_index: int
    class_name: str
    dimension: str
    system: str
    user: str

    @property
    def place(self) -> Place:
        return self.class_index, self.dimension


def load_prompts() -> Prompts:
    """prompts.yaml of this package."""
    text = (resources.files("mdpr.knowledge") / "prompts.yaml").read_text(encoding="utf-8")
    prompts = Prompts.model_validate(parse_yaml(text, "prompts.yaml"))
    assert tuple(prompts.dimensions) == DIMENSIONS
    return prompts


def make_questions(
    classes: Sequence[ClassInfo],
    rival_C: Sequence[int],
    prompts: Prompts,
    llm: LlmParams,
    places: Iterable[Place],
    rejected: Mapping[Place, Rejected] | None = None,
) -> list[Question]:
    """One question for each of `places`, in their order. If a place is in `rejected`, its prompt gives the reason.

    rival_C: per class the index of the class it is most confused with.
    """
    schemas = prompts.schemas()
    questions = []
    for index, dimension in places:
        item, rival, prompt = classes[index], classes[rival_C[index]], prompts.dimensions[dimension]
        user = _fill(prompt.ask, {"class": item.display_name, "rival": rival.display_name})
        if rejected and (earlier := rejected.get((index, dimension))):
            user += "\n" + _fill(prompts.repair, {"sentence": earlier.sentence, "reason": earlier.reason})
        key = question_key(
            {
                "llm": shaping(llm),
                "prompt_version": prompt.version,
                "schema": schemas[dimension],
                "system": prompts.system,
                "user": user,
                "class": [item.index, item.name, item.disambiguation],
                "rival": [rival.index, rival.name, rival.disambiguation] if dimension == DIFFERENTIAL else None,
            }
        )
        questions.append(Question(key, item.index, item.name, dimension, prompts.system, user))
    return questions


def shaping(llm: LlmParams) -> dict[str, Any]:
    """The settings that shape an answer. The others (limits, prices, time-outs) only say how it is fetched."""
    names = ("vendor", "model", "base_url", "structured_output", "temperature", "seed", "max_tokens")
    return {name: getattr(llm, name) for name in names}


def question_key(parts: Mapping[str, Any]) -> str:
    """sha256 of `parts` as canonical JSON: equal parts in any order give equal keys, different parts different ones."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with its placeholders replaced. Braces inside the values mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda mark: values[mark.group(1)], text)
