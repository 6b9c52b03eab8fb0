"""What a chat model is asked: one question a class and dimension, with the key under which its answer is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdpr.artifacts import ClassInfo
from mdpr.knowledge.dimensions import DIFFERENTIAL
from mdpr.knowledge.prompts import Prompts, Rejected, fill
from mdpr.knowledge.schema import Schema
from mdpr.params import LlmParams

# Settings that shape an answer; the others (limits, prices, time-outs) only say how it is fetched.
SHAPING = ("vendor", "model", "base_url", "structured_output", "temperature", "seed", "max_tokens")
Place = tuple[int, str]  # class index, dimension


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


def make_questions(
    classes: Sequence[ClassInfo],
    rival_C: Sequence[int],
    prompts: Prompts,
    schemas: Mapping[str, Schema],
    llm: LlmParams,
    places: Iterable[Place],
    rejected: Mapping[Place, Rejected] | None = None,
) -> list[Question]:
    """One for each of `places`, in their order; the prompt of one that is in `rejected` says why.

    rival_C: for each class the index of the class it is most confused with.
    """
    whys = rejected or {}
    return [
        make_question(
            classes[index], classes[rival_C[index]], dimension, prompts, schemas, llm, whys.get((index, dimension))
        )
        for index, dimension in places
    ]


def make_question(
    item: ClassInfo,
    rival: ClassInfo,
    dimension: str,
    prompts: Prompts,
    schemas: Mapping[str, Schema],
    llm: LlmParams,
    rejected: Rejected | None = None,
) -> Question:
    user = fill(prompts, dimension, called(item), called(rival), rejected)
    key = question_key(
        {
            "llm": {name: getattr(llm, name) for name in SHAPING},
            "prompt_version": prompts.dimensions[dimension].version,
            "schema": schemas[dimension],
            "system": prompts.system,
            "user": user,
            "class": [item.index, item.name, item.disambiguation],
            "rival": [rival.index, rival.name, rival.disambiguation] if dimension == DIFFERENTIAL else None,
        }
    )
    return Question(key, item.index, item.name, dimension, prompts.system, user)


def question_key(parts: Mapping[str, Any]) -> str:
    """sha256 of `parts` as canonical JSON: equal parts, whatever their order, give equal keys, and only they do."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def called(item: ClassInfo) -> str:
    """A class as the prompt names it: with its disambiguation in brackets where it has one."""
    return f"{item.name} ({item.disambiguation})" if item.disambiguation else item.name
