"""The audit: the table of checks, and those that compare sentences with each other or with the whole label set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from mdpr.artifacts import Knowledge
from mdpr.knowledge.audit import wording
from mdpr.knowledge.audit.findings import Finding, Level, Line, alternatives_of, lines_of
from mdpr.knowledge.audit.wording import NameIndex, spelled_alike, words_of
from mdpr.params import DIFFERENTIAL

NEAR = 90.0  # percent of characters that two sentences share, in order, without the names of their classes
ROWS_AT_ONCE = 200  # of the similarity matrix; the result does not depend on it


def audit(
    knowledge: Knowledge, rival_names: Sequence[str] | None = None, *, alternatives: bool = False
) -> list[Finding]:
    """Every finding, in order of class and dimension.

    `rival_names`: the rivals that the probe found, one per class; without them the choice of rivals is not checked.
    With `alternatives`, the differential sentences against other classes are audited as well. A missing sentence is
    only missing, and one longer than MAX_CHARACTERS only too long: no other check reads it.
    """
    lines = list(lines_of(knowledge))
    if alternatives:
        lines += alternatives_of(knowledge)
    findings = [line.finding("error", "missing", "no sentence") for line in lines if not line.sentence]
    for line in lines:
        if len(line.sentence) > wording.MAX_CHARACTERS:
            findings.append(line.finding("error", "too_long", wording.too_long(line.sentence) or ""))
    readable = [line for line in lines if 0 < len(line.sentence) <= wording.MAX_CHARACTERS]
    for line in readable:
        for check, (level, sentence_fault) in SENTENCE_CHECKS.items():
            if message := sentence_fault(line.sentence):
                findings.append(line.finding(level, check, message))
        for check, (level, line_fault) in LINE_CHECKS.items():
            if message := line_fault(line):
                findings.append(line.finding(level, check, message))
    for check, (level, faults) in BASE_CHECKS.items():
        findings += [line.finding(level, check, message) for line, message in faults(readable)]
    if rival_names is not None:
        findings += _other_rival(knowledge, rival_names)
    if alternatives:
        findings += _no_rival(knowledge)
    order = {key: place for place, key in enumerate(knowledge.dimensions)}
    return sorted(findings, key=lambda finding: (finding.class_index, order[finding.dimension]))


def repeated(lines: Sequence[Line]) -> Iterator[tuple[Line, str]]:
    """The same sentence twice, whatever the case, the spacing and the full stop."""
    seen: dict[str, Line] = {}
    for line in lines:
        first = seen.setdefault(_plain(line), line)
        if first is not line:
            yield line, f"the same sentence as class {first.class_index}, {first.dimension}"


def near_duplicate(lines: Sequence[Line]) -> Iterator[tuple[Line, str]]:
    """Nearly the same sentence about another class in the same dimension: only the name tells the two apart.

    Similarity is the normalised Indel distance (rapidfuzz's ratio) of the words without the classes' names.
    """
    import numpy as np
    from rapidfuzz import fuzz, process

    by_dimension: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_dimension[line.dimension].append(line)
    for group in by_dimension.values():
        texts = [NameIndex([line.class_name]).rest_of(words_of(line.sentence)) for line in group]
        for start in range(0, len(group), ROWS_AT_ONCE):
            stop = start + ROWS_AT_ONCE
            score_NM = process.cdist(
                texts[start:stop], texts[:stop], scorer=fuzz.ratio, score_cutoff=NEAR, dtype=np.float32, workers=-1
            )
            score_NM = np.tril(score_NM, k=start - 1)  # each sentence against those before it
            for row in np.flatnonzero(score_NM.any(axis=1)):
                line, other = group[start + row], group[int(score_NM[row].argmax())]
                if _plain(line) != _plain(other):
                    alike = f"class {other.class_index} ({other.class_name}): {score_NM[row].max():.0f} % alike"
                    yield line, f"nearly the sentence of {alike}"


def other_class(lines: Sequence[Line]) -> Iterator[tuple[Line, str]]:
    """The sentence names another class of the label set, and not its own."""
    names = {line.class_name for line in lines}
    index = NameIndex(names)
    name_of = {words_of(name): name for name in names}
    for line in lines:
        words = words_of(line.sentence)
        own, rival = words_of(line.class_name), words_of(line.rival or "")
        others = [name for name in index.named_in(words) if name not in (own, rival)]
        if others and not spelled_alike(own, words):
            yield line, f"names {name_of[others[0]]} and not {line.class_name}"


def hidden_in_name(lines: Sequence[Line]) -> Iterator[tuple[Line, str]]:
    """Invisible characters in a class name, once per class."""
    for line in {line.class_index: line for line in reversed(lines)}.values():
        if fault := wording.hidden(line.class_name) or wording.look_alike(line.class_name):
            yield line, f"the class name holds {fault}"


# Name -> level and check.
SENTENCE_CHECKS: dict[str, tuple[Level, Callable[[str], str | None]]] = {
    "too_short": ("error", wording.too_short),
    "too_long": ("error", wording.too_long),
    "question": ("error", wording.question),
    "chatter": ("error", wording.chatter),
    "instruction": ("error", wording.instruction),
    "markup": ("error", wording.markup),
    "hidden": ("error", wording.hidden),
    "look_alike": ("error", wording.look_alike),
    "language": ("error", wording.language),
    "several_sentences": ("warning", wording.several_sentences),
}
LINE_CHECKS: dict[str, tuple[Level, Callable[[Line], str | None]]] = {
    "about_rival": ("error", wording.about_rival),
    "names_rival": ("warning", wording.names_rival),
    "no_contrast": ("warning", wording.no_contrast),
    "rival_in_name": ("warning", wording.rival_in_name),
}
BASE_CHECKS: dict[str, tuple[Level, Callable[[Sequence[Line]], Iterator[tuple[Line, str]]]]] = {
    "repeated": ("error", repeated),
    "near_duplicate": ("warning", near_duplicate),
    "other_class": ("warning", other_class),
    "hidden_in_name": ("warning", hidden_in_name),
}


def _other_rival(knowledge: Knowledge, rival_names: Sequence[str]) -> Iterator[Finding]:
    for item, rival in zip(knowledge.classes, rival_names, strict=True):
        if item.rival != rival:
            message = f"contrasts with {item.rival}, the frozen model confuses it with {rival}"
            yield Finding("warning", "other_rival", item.index, item.name, DIFFERENTIAL, message)


def _no_rival(knowledge: Knowledge) -> Iterator[Finding]:
    """An alternative is found by its rival's name: under any other name it is never used."""
    names = {item.name for item in knowledge.classes}
    for line in alternatives_of(knowledge):
        if line.rival not in names:
            yield line.finding("error", "no_rival", "no class of the label set has this name")


def _plain(line: Line) -> str:
    return " ".join(line.sentence.lower().split()).rstrip(".")
