"""Does a sentence keep its class and the class's rival apart? Each check returns what is wrong, or nothing."""

from __future__ import annotations

from functools import lru_cache

from mdpr.knowledge.audit.finding import Line
from mdpr.knowledge.audit.names import NameIndex, Words, words_of
from mdpr.knowledge.dimensions import DIFFERENTIAL

ALIKE = 85.0  # percent of characters in order, from which on a name is taken for another spelling
CONTRAST = frozenset(
    [
        "unlike",
        "than",
        "whereas",
        "while",
        "but",
        "not",
        "no",
        "nor",
        "without",
        "instead",
        "rather",
        "compared",
        "contrast",
        "neither",
        "never",
        "lacks",
        "lack",
        "lacking",
        "differs",
        "differ",
        "distinguishes",
        "distinguished",
        "different",
        "opposed",
        "though",
        "although",
        "where",
    ]
)


def about_rival(line: Line) -> str | None:
    """The rival is named, the class is not, and nothing contrasts the two."""
    own, rival, contrast = _names(line)
    return f"speaks of its rival {line.rival} and not of {line.class_name}" if rival and not (own or contrast) else None


def names_rival(line: Line) -> str | None:
    own, rival, contrast = _names(line)
    return f"names its rival {line.rival} without contrasting the two" if rival and own and not contrast else None


def no_contrast(line: Line) -> str | None:
    if line.dimension != DIFFERENTIAL or not line.rival or _names(line)[1]:
        return None
    if spelled_alike(words_of(line.rival), words_of(line.sentence)):
        return None
    return f"does not name its rival {line.rival}"


def rival_in_name(line: Line) -> str | None:
    """Once a class, at its differential sentence: whatever names the class names its rival too."""
    if line.dimension != DIFFERENTIAL or not line.rival:
        return None
    name, rival = words_of(line.class_name), words_of(line.rival)
    inside = name != rival and rival in NameIndex([line.rival]).named_in(name)
    return f"the name {line.class_name} holds its rival's, {line.rival}: every sentence leans to it" if inside else None


@lru_cache(maxsize=1)  # three checks in a row ask for the same line
def _names(line: Line) -> tuple[bool, bool, bool]:
    """Whether the sentence names its class, its rival, and contrasts."""
    words = words_of(line.sentence)
    own, rival = words_of(line.class_name), words_of(line.rival or "")
    found = NameIndex([line.class_name, line.rival or ""]).named_in(words)
    return (
        own in found or spelled_alike(own, words),
        bool(rival) and rival != own and rival in found,
        not CONTRAST.isdisjoint(words),
    )


def spelled_alike(name: Words, text: Words) -> bool:
    """Whether the text writes the name its own way: `snowy mountain` for mountain snowy, `oil rig` for oilrig,
    `kindergarten` for kindergarden. Whole words alone count: no plant is an ant."""
    from rapidfuzz import fuzz, process

    if set(name).issubset(text):
        return True
    runs = ["".join(text[start : start + length]) for start in range(len(text)) for length in range(1, len(name) + 2)]
    return process.extractOne("".join(name), runs, scorer=fuzz.ratio, score_cutoff=ALIKE) is not None
