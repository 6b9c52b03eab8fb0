"""Checks that need the text encoder or its tokenizer: the length in tokens, and the margins between classes.

C classes, V dimensions, d joint embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mdpr.artifacts import Knowledge
from mdpr.knowledge.audit.rules import Finding, alternatives_of, lines_of
from mdpr.knowledge.audit.wording import MAX_CHARACTERS

if TYPE_CHECKING:
    import numpy as np

CONTEXT_TOKENS = 77  # of CLIP's own text towers, start and end token included
CLASSES_AT_ONCE = 256  # of the similarity tensor; the result does not depend on it


def too_many_tokens(
    knowledge: Knowledge, encode: Callable[[str], Sequence[int]], allowed: int = CONTEXT_TOKENS
) -> Iterator[Finding]:
    """An error for every sentence, alternatives included, that a text tower of `allowed` tokens would cut.

    `encode` is the tokenizer's: the ids of a text, without start and end token. It reads the first MAX_CHARACTERS of a
    sentence; a longer one is an error of `audit` already.
    """
    for line in (*lines_of(knowledge), *alternatives_of(knowledge)):
        count = len(encode(line.sentence[:MAX_CHARACTERS])) + 2
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
