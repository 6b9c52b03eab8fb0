"""Checks that compare sentences with each other, and with the whole label set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from mdpr.knowledge.audit.contrast import spelled_alike
from mdpr.knowledge.audit.finding import Line
from mdpr.knowledge.audit.names import NameIndex, words_of

NEAR = 90.0  # percent of characters that two sentences share, in order, their classes' names taken out
ROWS_AT_ONCE = 200  # of the similarity matrix; the result does not depend on it


def repeated(lines: Sequence[Line]) -> Iterator[tuple[Line, str]]:
    """The same sentence twice, whatever the case, the spacing and the full stop."""
    seen: dict[str, Line] = {}
    for line in lines:
        first = seen.setdefault(_plain(line), line)
        if first is not line:
            yield line, f"the same sentence as class {first.class_index}, {first.dimension}"


def near_duplicate(lines: Sequence[Line]) -> Iterator[tuple[Line, str]]:
    """Nearly the same sentence about another class in the same dimension: it tells the two apart by name alone.

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
                    percent = f"{score_NM[row].max():.0f} %"
                    yield (
                        line,
                        f"nearly the sentence of class {other.class_index} ({other.class_name}): {percent} alike",
                    )


def other_class(lines: Sequence[Line]) -> Iterator[tuple[Line, str]]:
    """Another class of the label set is named, and the class itself is not."""
    names = {line.class_name for line in lines}
    index = NameIndex(names)
    readable = {words_of(name): name for name in names}
    for line in lines:
        words = words_of(line.sentence)
        own, rival = words_of(line.class_name), words_of(line.rival or "")
        others = [name for name in index.named_in(words) if name not in (own, rival)]
        if others and not spelled_alike(own, words):
            yield line, f"names {readable[others[0]]} and not {line.class_name}"


def _plain(line: Line) -> str:
    return " ".join(line.sentence.lower().split()).rstrip(".")
