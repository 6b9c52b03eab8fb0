"""The captions of pre-training: frames filled with a class's own phrases (captions.yaml names the slots)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mdpr.errors import DataError
from tools.embedded.fashion_mnist import CLASS_NAMES

CAPTIONS_PATH = Path(__file__).with_name("captions.yaml")

_SLOT = re.compile(r"\{(\w+?)(\d?)\}")


@dataclass(frozen=True)
class ClassPhrases:
    """The slots' phrases for one class; `difference` is keyed by the rival it sets the class apart from."""

    name: str
    article: str
    phrases: dict[str, tuple[str, ...]]
    difference: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Captions:
    """All frames, grouped by topic, and the phrases of every class in label order."""

    frames: dict[str, tuple[str, ...]]
    classes: tuple[ClassPhrases, ...]

    def sample(self, label: int, group: str, chance: np.random.Generator) -> str:
        """Return one caption of a class from a group of frames, drawn with `chance`."""
        words, frame = self.classes[label], draw(self.frames[group], 1, chance)[0]
        rival = draw(list(words.difference), 1, chance)[0]
        values = self._constants(words, rival)
        for slot, numbers in _slots(frame).items():
            drawn = draw(self._choices(words, slot, rival), len(numbers), chance)
            values |= {slot + number: phrase for number, phrase in zip(numbers, drawn, strict=True)}
        return frame.format(**values)

    def every(self) -> Iterator[str]:
        """Yield every caption that `sample` can return, class by class."""
        for words, group in product(self.classes, self.frames):
            rivals = list(words.difference) if group == "difference" else list(words.difference)[:1]
            for rival, frame in product(rivals, self.frames[group]):
                yield from self._fillings(words, rival, frame)

    def _fillings(self, words: ClassPhrases, rival: str, frame: str) -> Iterator[str]:
        slots = _slots(frame)
        keys = [slot + number for slot, numbers in slots.items() for number in numbers]
        drawings = [permutations(self._choices(words, slot, rival), len(slots[slot])) for slot in slots]
        constants = self._constants(words, rival)
        for drawing in product(*drawings):
            phrases = [phrase for drawn in drawing for phrase in drawn]
            yield frame.format(**constants, **dict(zip(keys, phrases, strict=True)))

    def _constants(self, words: ClassPhrases, rival: str) -> dict[str, str]:
        rival_article = self.classes[CLASS_NAMES.index(rival)].article
        return {"name": words.name, "a": words.article, "rival": rival, "b": rival_article}

    @staticmethod
    def _choices(words: ClassPhrases, slot: str, rival: str) -> tuple[str, ...]:
        return words.difference[rival] if slot == "difference" else words.phrases[slot]


def draw(options: Sequence[str], count: int, chance: np.random.Generator) -> list[str]:
    """Return `count` different options in random order."""
    return [options[place] for place in chance.permutation(len(options))[:count]]


def load_captions() -> Captions:
    """Read captions.yaml; raises `DataError` when a class is missing or unknown."""
    content = yaml.safe_load(CAPTIONS_PATH.read_text(encoding="utf-8"))
    by_name = content["classes"]
    if set(by_name) != set(CLASS_NAMES):
        raise DataError(f"{CAPTIONS_PATH}: classes must be exactly {', '.join(CLASS_NAMES)}")
    frames = {group: tuple(lines) for group, lines in content["frames"].items()}
    return Captions(frames, tuple(_read_class(name, by_name[name]) for name in CLASS_NAMES))


def _read_class(name: str, entry: dict[str, Any]) -> ClassPhrases:
    phrases = {"kind": tuple(entry["kinds"])}
    phrases |= {slot: tuple(entry[slot]) for slot in ("looks", "detail", "does", "setting")}
    difference = {rival: tuple(lines) for rival, lines in entry["difference"].items()}
    return ClassPhrases(name, entry["article"], phrases, difference)


def _slots(frame: str) -> dict[str, list[str]]:
    """Return a frame's phrase slots and their numbers: "{kind} with {looks1}, {looks2}" has two looks."""
    slots: dict[str, list[str]] = {}
    for slot, number in _SLOT.findall(frame):
        if slot not in {"name", "a", "rival", "b"}:
            slots.setdefault(slot, []).append(number)
    return slots
