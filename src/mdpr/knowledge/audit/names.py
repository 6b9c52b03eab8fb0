"""Where a text names a class: whole words, in order, singular or plural, the longer of two names first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

Words = tuple[str, ...]
WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> Words:
    """`A T-shirt's hem` -> a, t, shirt, s, hem."""
    return tuple(WORD.findall(text.lower()))


class NameIndex:
    """The class names of a label set, ready to be looked up in sentences."""

    def __init__(self, names: Iterable[str]) -> None:
        self._name_of: dict[Words, Words] = {}
        for name in sorted({words_of(name) for name in names} - {()}):
            for form in _forms(name):
                self._name_of.setdefault(form, name)
        for name in {*self._name_of.values()}:
            self._name_of[name] = name  # a name as written is never the plural of another
        self._longest: dict[str, int] = {}  # first word -> words of the longest name that starts with it
        for words in self._name_of:
            self._longest[words[0]] = max(len(words), self._longest.get(words[0], 0))

    def named_in(self, text: Sequence[str]) -> list[Words]:
        """The names in `text` (its words), from left to right. A word belongs to one name: the longest that fits."""
        return [name for name, _ in self._parts(text) if name]

    def rest_of(self, text: Sequence[str]) -> str:
        """The words of `text` that belong to no name."""
        return " ".join(word for name, words in self._parts(text) if not name for word in words)

    def _parts(self, text: Sequence[str]) -> Iterator[tuple[Words | None, Sequence[str]]]:
        place = 0
        while place < len(text):
            for length in range(min(self._longest.get(text[place], 0), len(text) - place), 0, -1):
                words = tuple(text[place : place + length])
                if words in self._name_of:
                    yield self._name_of[words], words
                    break
            else:
                length = 1
                yield None, text[place : place + 1]
            place += length


def _forms(name: Words) -> Iterator[Words]:
    """A name, its plurals, and what it may be the plural of."""
    *start, last = name
    endings = [last, f"{last}s", f"{last}es"]
    if last.endswith("y"):
        endings.append(f"{last[:-1]}ies")
    if last.endswith("s") and len(last) > 3:
        endings.append(last[:-1])
    return ((*start, ending) for ending in endings)
