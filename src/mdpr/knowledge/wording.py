"""Checks that read one sentence. Each returns the fault in words, or None."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from mdpr.params import DIFFERENTIAL

if TYPE_CHECKING:
    from mdpr.knowledge.audit import Line

MIN_WORDS = 5
MAX_WORDS = 50  # about 77 of CLIP's tokens; encode takes the exact count with the tokenizer
MAX_CHARACTERS = 600  # a longer text is no sentence: nothing else looks at it
MAX_OTHER_SCRIPT = 0.2  # share of letters that are not Latin
ALIKE = 85.0  # percent of characters in order, from which on a name is taken for another spelling

# Characters that show nothing or change what is shown: controls, format characters (bidi, zero width, soft hyphen),
# private and unassigned ones, line separators, variation selectors, and letters that are blank.
HIDDEN_CATEGORIES = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
BLANKS = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"}
LOOK_ALIKES = {"ARMENIAN", "CHEROKEE", "CYRILLIC", "FULLWIDTH", "GREEK", "MATHEMATICAL"}  # first words of Unicode names

CHATTER = re.compile(
    r"\bas an? (ai|artificial|language model|assistant)\b|\blanguage model\b|\bi('m| am) (sorry|unable|afraid|an ai)\b"
    r"|\bi (can ?not|can't|won't|do not|don't)\b|^\s*(sure|certainly|of course|absolutely|okay|ok|great)\b[,!.:]"
    r"|\bhere (is|are|'s) (a|an|the|one|your|my)\b.{0,40}\b(sentence|description|answer)s?\b|\bhope this helps\b"
    r"|\blet me know\b|\bplease (provide|note|specify)\b|^\s*(answer|sentence|description|output|response)\s*:",
    re.IGNORECASE,
)
INSTRUCTION = re.compile(
    r"\b(ignore|disregard|forget|override)\b.{0,30}\b(previous|above|prior|earlier|all|any)\b.{0,30}"
    r"\b(instruction|prompt|message|rule|text)s?\b|\bsystem prompt\b|\byou (must|should|are required to) (now|always|"
    r"answer|reply|respond|write|output)\b|\b(respond|reply|answer) only with\b|<\|[a-z_]+\|>|\[/?inst\]",
    re.IGNORECASE,
)
MARKUP = re.compile(r"</?[a-z!][^>]*>?|&(#\d+|#x[0-9a-f]+|[a-z]{2,8});|```|\*\*|javascript:|https?://|[{}]", re.I)
SENTENCE_END = re.compile(r"(?<!\bSt)(?<!\bDr)(?<!\bMt)[.!?][\"')]*\s+[A-Z]")  # St. Bernard goes on
WORD = re.compile(r"[^\W_]+")
CONTRAST = re.compile(
    r"\b(unlike|than|whereas|while|but|not|nor?|without|instead|rather|compared|contrast|neither|never|lacks?|lacking"
    r"|differs?|different|distinguish(es|ed)|opposed|though|although|where)\b",
    re.IGNORECASE,
)
Words = tuple[str, ...]


def too_short(sentence: str) -> str | None:
    count = len(sentence.split())
    return f"{count} word{'s' * (count != 1)}, fewer than {MIN_WORDS}" if count < MIN_WORDS else None


def too_long(sentence: str) -> str | None:
    if len(sentence) > MAX_CHARACTERS:
        return f"{len(sentence):,} characters, more than {MAX_CHARACTERS}"
    count = len(sentence.split())
    return f"{count} words, more than {MAX_WORDS}: the text encoder reads 77 tokens" if count > MAX_WORDS else None


def several_sentences(sentence: str) -> str | None:
    count = len(SENTENCE_END.findall(sentence)) + 1
    return f"{count} sentences, one was asked for" if count > 1 else None


def question(sentence: str) -> str | None:
    return "a question, usually the prompt's own" if sentence.rstrip("\"' )").endswith("?") else None


def chatter(sentence: str) -> str | None:
    return _quote("a refusal or chatter of the model", CHATTER.search(sentence))


def instruction(sentence: str) -> str | None:
    return _quote("an instruction to a model", INSTRUCTION.search(sentence))


def markup(sentence: str) -> str | None:
    return _quote("markup, code or an address", MARKUP.search(sentence))


def hidden(text: str) -> str | None:
    """Characters that nobody sees, by their code points."""
    if text.isascii() and text.isprintable():
        return None
    found = {character for character in text if _is_hidden(character)}
    return f"invisible or control characters: {_code_points(found)}" if found else None


def look_alike(text: str) -> str | None:
    """Letters of another script inside a Latin word."""
    if text.isascii():
        return None
    for word in WORD.findall(text):
        by_script = {unicodedata.name(letter, "").partition(" ")[0]: letter for letter in word if letter.isalpha()}
        if "LATIN" in by_script and (others := by_script.keys() & LOOK_ALIKES):
            return f"a Latin word with letters of another script: {_code_points(by_script[name] for name in others)}"
    return None


def language(sentence: str) -> str | None:
    letters = [character for character in sentence if character.isalpha()]
    other = sum(ord(character) > 0x24F for character in letters)  # beyond Latin Extended-B
    if letters and other / len(letters) > MAX_OTHER_SCRIPT:
        return "not written in Latin letters: sentences are English"
    return None


def about_rival(line: Line) -> str | None:
    """The sentence names the rival and not the class, and contrasts nothing."""
    own, rival, contrast = _named(line)
    return f"is about its rival {line.rival}, not about {line.class_name}" if rival and not (own or contrast) else None


def names_rival(line: Line) -> str | None:
    own, rival, contrast = _named(line)
    return f"names its rival {line.rival} without contrasting the two" if rival and own and not contrast else None


def no_contrast(line: Line) -> str | None:
    if line.dimension != DIFFERENTIAL or not line.rival or _named(line)[1]:
        return None
    if spelled_alike(words_of(line.rival), words_of(line.sentence)):
        return None
    return f"does not name its rival {line.rival}"


def rival_in_name(line: Line) -> str | None:
    """The class name holds its rival's; reported once per class, at the differential sentence."""
    if line.dimension != DIFFERENTIAL or not line.rival:
        return None
    name, rival = words_of(line.class_name), words_of(line.rival)
    inside = name != rival and rival in NameIndex([line.rival]).named_in(name)
    return f"the name {line.class_name} holds its rival's, {line.rival}: every sentence leans to it" if inside else None


def words_of(text: str) -> Words:
    """`A T-shirt's hem` -> a, t, shirt, s, hem."""
    return tuple(WORD.findall(text.lower()))


class NameIndex:
    """Class names, to be found in sentences: whole words, in order, singular or plural."""

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


def spelled_alike(name: Words, text: Words) -> bool:
    """Whether the text writes the name in its own way: `snowy mountain` for mountain snowy, `oil rig` for oilrig,
    `kindergarten` for kindergarden. Only whole words count: no plant is an ant."""
    from rapidfuzz import fuzz, process

    if set(name).issubset(text):
        return True
    runs = ["".join(text[start : start + length]) for start in range(len(text)) for length in range(1, len(name) + 2)]
    return process.extractOne("".join(name), runs, scorer=fuzz.ratio, score_cutoff=ALIKE) is not None


@lru_cache(maxsize=1)  # three checks in a row look at the same line
def _named(line: Line) -> tuple[bool, bool, bool]:
    """Whether the sentence names its class, names its rival, and holds a word of contrast."""
    words = words_of(line.sentence)
    own, rival = words_of(line.class_name), words_of(line.rival or "")
    found = NameIndex([line.class_name, line.rival or ""]).named_in(words)
    return (
        own in found or spelled_alike(own, words),
        bool(rival) and rival != own and rival in found,
        CONTRAST.search(line.sentence) is not None,
    )


def _forms(name: Words) -> Iterator[Words]:
    """A name, its plurals, and what it may be the plural of."""
    *start, last = name
    endings = [last, f"{last}s", f"{last}es"]
    if last.endswith("y"):
        endings.append(f"{last[:-1]}ies")
    if last.endswith("s") and len(last) > 3:
        endings.append(last[:-1])
    return ((*start, ending) for ending in endings)


def _is_hidden(character: str) -> bool:
    if unicodedata.category(character) in HIDDEN_CATEGORIES or character in BLANKS:
        return True
    return unicodedata.name(character, "").startswith("VARIATION SELECTOR")


def _code_points(characters: Iterable[str]) -> str:
    """`U+202E RIGHT-TO-LEFT OVERRIDE`, the first three of them."""
    named = [f"U+{ord(item):04X} {unicodedata.name(item, '')}".strip() for item in sorted(characters)]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


def _quote(what: str, match: re.Match[str] | None) -> str | None:
    return f"{what}: {match.group(0).strip()[:40]!r}" if match else None
