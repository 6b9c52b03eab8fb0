"""Faults in a knowledge base: a pure function from sentences to findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mdpr.artifacts import Knowledge

MIN_WORDS = 5


@dataclass(frozen=True)
class Finding:
    """One fault, tied to a class and a dimension."""

    level: Literal["error", "warning"]
    check: str
    class_index: int
    class_name: str
    dimension: str
    message: str


def audit(knowledge: Knowledge, rival_names: Sequence[str]) -> list[Finding]:
    """Every finding, in order of class. `rival_names`: the rivals that the probe found, a class each."""
    return [*_too_short(knowledge), *_repeated(knowledge), *_other_rival(knowledge, rival_names)]


def _too_short(knowledge: Knowledge) -> Iterator[Finding]:
    for item in knowledge.classes:
        for key in knowledge.dimensions:
            words = len(item.sentences[key].split())
            if words < MIN_WORDS:
                message = f"{words} words, fewer than {MIN_WORDS}"
                yield Finding("error", "too_short", item.index, item.name, key, message)


def _repeated(knowledge: Knowledge) -> Iterator[Finding]:
    seen: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for item in knowledge.classes:
        for key in knowledge.dimensions:
            normal = " ".join(item.sentences[key].lower().split()).rstrip(".")
            seen[normal].append((item.index, item.name, key))
    for (first_index, _, first_key), *others in seen.values():
        for index, name, key in others:
            message = f"the same sentence as class {first_index}, {first_key}"
            yield Finding("error", "repeated", index, name, key, message)


def _other_rival(knowledge: Knowledge, rival_names: Sequence[str]) -> Iterator[Finding]:
    for item, rival in zip(knowledge.classes, rival_names, strict=True):
        if item.rival != rival:
            message = f"contrasts with {item.rival}, the frozen model confuses it with {rival}"
            yield Finding("warning", "other_rival", item.index, item.name, "differential_features", message)
