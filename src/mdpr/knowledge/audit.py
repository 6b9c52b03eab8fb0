"""The audit of a knowledge base: functions from sentences to findings.

An error makes a sentence unfit for use; a warning is worth a look. `audit` reads only the text and runs in describe,
whose image has no torch. The checks at the end need the text encoder or its tokenizer and run in encode:
`not_discriminating` gives warnings in features/audit.json, and a sentence too long for the tower is an error there.
`mdpr knowledge audit --tokens` lists those beforehand if CLIP's tokenizer is installed.

C classes, V dimensions, d joint embedding width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mdpr.artifacts import Knowledge
from mdpr.knowledge import wording
from mdpr.knowledge.wording import NameIndex, spelled_alike, words_of
from mdpr.params import DIFFERENTIAL

if TYPE_CHECKING:
    import numpy as np

Level = Literal["error", "warning"]
NEAR = 90.0  # percent of characters that two sentences share, in order, without the names of their classes
ROWS_AT_ONCE = 32  # compared with all before them; the result does not depend on it
CONTEXT_TOKENS = 77  # of CLIP's own text towers, start and end token included
CLASSES_AT_ONCE = 256  # of the similarity tensor; the result does not depend on it


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
    """Every differential sentence but the one in use, in order of class.

    `describe` puts the alternative against the rival that the probe found into use, and keeps it among the others.
    """
    for item in knowledge.classes:
        in_use = (item.rival, item.sentences.get(DIFFERENTIAL))
        for rival, sentence in item.differential_alternatives.items():
            if (rival, sentence) != in_use:
                yield Alternative(item.index, item.name, rival, DIFFERENTIAL, sentence.strip())


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
    by_dimension: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_dimension[line.dimension].append(line)
    for group in by_dimension.values():
        texts = [NameIndex([line.class_name]).rest_of(words_of(line.sentence)) for line in group]
        for row, nearest, score in _nearest_before(texts):
            line, other = group[row], group[nearest]
            if _plain(line) != _plain(other):
                yield (
                    line,
                    f"nearly the sentence of class {other.class_index} ({other.class_name}): {score:.0f} % alike",
                )


def _nearest_before(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """Each text that is alike to one before it: its place, that of the most similar (the first of several), the score.

    Exact, without comparing all pairs: the Indel distance is at least the difference of the letters' counts, and most
    pairs differ in those by too much.
    """
    import numpy as np
    from rapidfuzz import fuzz, process

    bits_NW, length_N = _letter_counts(texts), np.array([len(text) for text in texts])
    share = 1 - NEAR / 100
    # The other text is at most (1 + share) / (1 - share) times as long.
    most_N = (share * length_N * 2 / (1 - share) + 1).astype(np.int64)
    for start in range(0, len(texts), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(texts)))
        apart_RC = np.bitwise_count(bits_NW[rows, None, 0] ^ bits_NW[None, : rows[-1], 0])
        apart_RC += np.bitwise_count(bits_NW[rows, None, 1] ^ bits_NW[None, : rows[-1], 1])
        row, column = np.nonzero(apart_RC <= most_N[rows, None])
        row += start
        row, column = row[column < row], column[column < row]
        apart = np.bitwise_count(bits_NW[row] ^ bits_NW[column]).sum(axis=1)
        near = apart <= share * (length_N[row] + length_N[column]) + 1e-6
        row, column = row[near], column[near]
        score = process.cpdist(
            [texts[place] for place in row],
            [texts[place] for place in column],
            scorer=fuzz.ratio,
            score_cutoff=NEAR,
            dtype=np.float32,
            workers=-1,
        )
        order = np.lexsort((column, -score, row))
        order = order[score[order] > 0]
        first = np.unique(row[order], return_index=True)[1]
        for place in order[first].tolist():
            yield int(row[place]), int(column[place]), float(score[place])


def _letter_counts(texts: Sequence[str]) -> np.ndarray:
    """uint64 (N, 4): counts of 32 groups of letters, each as 8 bits of which count - low are set.

    Two texts differ in at most as many bits as letters must be taken out and put in to make one the other.
    """
    import numpy as np

    groups, levels = 32, 8
    count_NG = np.zeros((len(texts), groups), np.int64)
    for place, text in enumerate(texts):
        count_NG[place] = np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32) % groups, minlength=groups)
    count_NG = count_NG[:, np.argsort(-count_NG.var(axis=0))]  # those that differ most between texts first
    low_G = np.rint(count_NG.mean(axis=0)).astype(np.int64) - levels // 2
    set_NGL = count_NG[:, :, None] > low_G[:, None] + np.arange(levels)
    return np.packbits(set_NGL.reshape(len(texts), -1), axis=1).view(np.uint64)


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


def too_many_tokens(
    knowledge: Knowledge, encode: Callable[[str], Sequence[int]], allowed: int = CONTEXT_TOKENS
) -> Iterator[Finding]:
    """An error for every sentence, alternatives included, that a text tower of `allowed` tokens would cut.

    `encode` is the tokenizer's: the ids of a text, without start and end token. It reads the first MAX_CHARACTERS of a
    sentence; a longer one is an error of `audit` already.
    """
    for line in (*lines_of(knowledge), *alternatives_of(knowledge)):
        count = len(encode(line.sentence[: wording.MAX_CHARACTERS])) + 2
        if count > allowed:
            yield line.finding("error", "too_many_tokens", f"{count} tokens, the text encoder reads {allowed}")


def sentence_margins(
    sentences_CVd: np.ndarray, names_Cd: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The margin of every sentence (C, V) and the nearest other class of every sentence (C, V), int64.

    The margin is the cosine with the sentence's own class name minus the largest with any other class name: positive
    if the sentence is closest to its own class. Classes of the same name do not count as others.
    """
    import numpy as np

    sentences_CVd = sentences_CVd / np.linalg.norm(sentences_CVd, axis=-1, keepdims=True)
    names_Cd = names_Cd / np.linalg.norm(names_Cd, axis=-1, keepdims=True)
    classes = len(names_Cd)
    _, name_C = np.unique(np.asarray(class_names), return_inverse=True)
    margin_CV = np.empty(sentences_CVd.shape[:2], dtype=np.float32)
    nearest_CV = np.empty(sentences_CVd.shape[:2], dtype=np.int64)
    for start in range(0, classes, CLASSES_AT_ONCE):
        part = slice(start, min(start + CLASSES_AT_ONCE, classes))
        own = np.arange(part.start, part.stop)
        cosine_BVC = sentences_CVd[part] @ names_Cd.T
        own_BV = np.take_along_axis(cosine_BVC, own[:, None, None], axis=2)[:, :, 0]
        same_BC = name_C[part, None] == name_C
        others_BVC = np.where(same_BC[:, None], -1.0, cosine_BVC)  # the least a cosine can be
        nearest_CV[part] = others_BVC.argmax(axis=2)
        margin_CV[part] = own_BV - others_BVC.max(axis=2)
    return margin_CV, nearest_CV


def not_discriminating(knowledge: Knowledge, margin_CV: np.ndarray, nearest_CV: np.ndarray) -> Iterator[Finding]:
    """A warning for every sentence that lies nearer to another class than to its own."""
    for place, line in enumerate(lines_of(knowledge)):
        c, v = divmod(place, len(knowledge.dimensions))
        if margin_CV[c, v] < 0:
            other = knowledge.classes[nearest_CV[c, v]].name
            message = f"the text encoder takes it for {other} (margin {margin_CV[c, v]:.3f})"
            yield line.finding("warning", "not_discriminating", message)
