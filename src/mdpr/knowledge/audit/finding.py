"""What an audit finds, and what it looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mdpr.artifacts import Knowledge

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One fault, tied to a class and a dimension."""

    level: Level
    check: str
    class_index: int
    class_name: str
    dimension: str
    message: str


@dataclass(frozen=True)
class Line:
    """One sentence with its place in the knowledge base; `rival` is the class that its contrast is with."""

    class_index: int
    class_name: str
    rival: str | None
    dimension: str
    sentence: str

    def finding(self, level: Level, check: str, message: str) -> Finding:
        return Finding(level, check, self.class_index, self.class_name, self.dimension, message)


def lines_of(knowledge: Knowledge) -> Iterator[Line]:
    """Every place of the knowledge base in order; a sentence that is not there is empty."""
    for item in knowledge.classes:
        for key in knowledge.dimensions:
            yield Line(item.index, item.name, item.rival, key, item.sentences.get(key, "").strip())
