"""The form of an answer: one sentence, in JSON, its field described for the dimension that is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from mdpr.knowledge.prompts import Prompts

Schema = Mapping[str, Any]  # a function's definition in JSON Schema: title, description, properties
MAX_CHARACTERS = 600


class Answer(BaseModel):
    """What a model must return. A longer text is no sentence, and is refused instead of cut."""

    model_config = ConfigDict(extra="forbid")

    sentence: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARACTERS)]


def make_schemas(prompts: Prompts) -> dict[str, Schema]:
    """The schema of each dimension's answer, as models are given it."""
    return {
        dimension: {
            "title": dimension,
            "description": prompt.field,
            "type": "object",
            "properties": {"sentence": {"type": "string", "description": prompt.field}},
            "required": ["sentence"],
            "additionalProperties": False,
        }
        for dimension, prompt in prompts.dimensions.items()
    }
