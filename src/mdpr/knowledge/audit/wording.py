"""Checks that read one sentence: each returns what is wrong with it, or nothing."""

from __future__ import annotations

import re

from mdpr.knowledge.audit.finding import Line
from mdpr.knowledge.audit.names import words_of

MIN_WORDS = 5
MAX_WORDS = 50  # about 77 of CLIP's tokens; the exact count is taken where the tokenizer is, in encode
MIN_FUNCTION_WORDS = 0.12  # share of an English sentence's words
MAX_OTHER_SCRIPT = 0.2  # share of letters that are not Latin

# Words that hold English together and are rare in other languages that use the same letters.
FUNCTION_WORDS = frozenset(
    [
        "a",
        "the",
        "of",
        "and",
        "with",
        "to",
        "from",
        "by",
        "for",
        "at",
        "that",
        "which",
        "this",
        "these",
        "its",
        "it",
        "their",
        "they",
        "are",
        "is",
        "has",
        "have",
        "or",
        "on",
        "in",
        "into",
        "over",
        "under",
        "between",
        "around",
        "often",
        "where",
        "while",
        "when",
        "than",
        "as",
        "an",
        "be",
        "can",
        "used",
        "unlike",
        "like",
        "not",
        "no",
        "but",
        "without",
        "both",
    ]
)
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
MARKUP = re.compile(
    r"</?[a-z!][^>]*>?|&(#\d+|#x[0-9a-f]+|[a-z]{2,8});|```|\*\*|javascript:|https?://|[{}\x00-\x1f]", re.I
)
SENTENCE_END = re.compile(r"(?<!\bSt)(?<!\bDr)(?<!\bMt)[.!?][\"')]*\s+[A-Z]")  # St. Bernard goes on


def too_short(line: Line) -> str | None:
    count = len(line.sentence.split())
    return f"{count} word{'s' * (count != 1)}, fewer than {MIN_WORDS}" if count < MIN_WORDS else None


def too_long(line: Line) -> str | None:
    count = len(line.sentence.split())
    return f"{count} words, more than {MAX_WORDS}: the text encoder reads 77 tokens" if count > MAX_WORDS else None


def several_sentences(line: Line) -> str | None:
    count = len(SENTENCE_END.findall(line.sentence)) + 1
    return f"{count} sentences, one was asked for" if count > 1 else None


def question(line: Line) -> str | None:
    return "a question, as a rule the prompt's own" if line.sentence.rstrip("\"' )").endswith("?") else None


def chatter(line: Line) -> str | None:
    return _quote("a refusal or chatter of the model", CHATTER.search(line.sentence))


def instruction(line: Line) -> str | None:
    return _quote("an instruction to a model", INSTRUCTION.search(line.sentence))


def markup(line: Line) -> str | None:
    return _quote("markup, code or an address", MARKUP.search(line.sentence))


def language(line: Line) -> str | None:
    letters = [character for character in line.sentence if character.isalpha()]
    other = sum(ord(character) > 0x24F for character in letters)  # beyond Latin Extended-B
    if letters and other / len(letters) > MAX_OTHER_SCRIPT:
        return "not written in Latin letters: sentences are English"
    words = words_of(line.sentence)
    share = sum(word in FUNCTION_WORDS for word in words) / max(1, len(words))
    if len(words) >= MIN_WORDS and share < MIN_FUNCTION_WORDS:
        return "does not read like English: hardly any of its function words"
    return None


def _quote(what: str, match: re.Match[str] | None) -> str | None:
    return f"{what}: {match.group(0).strip()[:40]!r}" if match else None
