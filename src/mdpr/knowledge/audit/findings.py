"""Findings of an audit, and the sentences it looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mdpr.artifacts import Knowledge
from mdpr.params import DIFFERENTIAL

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One fault of one class and dimension."""

    level: Level
    check: str
    class_index: int
    class_name: str
    dimension: str
    message: str

    @property
    def where(self) -> str:
        return f"class {self.class_index} ({self.class_name}), {self.dimension}"


@dataclass(frozen=True)
class Line:
    """One sentence and its place in the knowledge base; `rival` is the class that its contrast is with."""

    class_index: int
    class_name: str
    rival: str | None
    dimension: str
    sentence: str

    def finding(self, level: Level, check: str, message: str) -> Finding:
        return Finding(level, check, self.class_index, self.class_name, self.dimension, message)


@dataclass(frozen=True)
class Alternative(Line):
    """A differential sentence for another rival, used if the probe finds that one."""

    def finding(self, level: Level, check: str, message: str) -> Finding:
        return super().finding(level, check, f"against {self.rival}: {message}")


def lines_of(knowledge: Knowledge) -> Iterator[Line]:
    """Every place of the knowledge base in order; a missing sentence is empty."""
    for item in knowledge.classes:
        for key in knowledge.dimensions:
            yield Line(item.index, item.name, item.rival, key, item.sentences.get(key, "").strip())


def alternatives_of(knowledge: Knowledge) -> Iterator[Line]:
    """Every differential sentence against another class than `rival`, in order of class."""
    for item in knowledge.classes:
        for rival, sentence in item.differential_alternatives.items():
            yield Alternative(item.index, item.name, rival, DIFFERENTIAL, sentence.strip())
