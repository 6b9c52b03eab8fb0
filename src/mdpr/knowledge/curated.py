"""A finished knowledge base, fitted to the rivals that the probe found, and what it leaves to be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdpr.artifacts import ClassInfo, ClassKnowledge, Knowledge, read_unfinished, sha256
from mdpr.knowledge.dimensions import DIFFERENTIAL
from mdpr.knowledge.questions import Place


@dataclass(frozen=True)
class Base:
    """A finished knowledge base that a chat model is to complete; `sentences` are those that stay."""

    knowledge: Knowledge
    digest: str
    sentences: Mapping[Place, str]


def read_base(path: Path, classes: Sequence[ClassInfo], rival_C: Sequence[int]) -> Base:
    """The knowledge base at `path`, of exactly `classes`. A contrast stays where it is with the class's rival.

    rival_C: for each class the index of the class it is most confused with. Raises `KnowledgeError` where the file is
    of other classes; gaps are what it is read for.
    """
    names = [item.name for item in classes]
    fitted = fit_rivals(read_unfinished(path, names), [names[index] for index in rival_C])
    sentences = {
        (item.index, dimension): sentence
        for item in fitted.classes
        for dimension, sentence in item.sentences.items()
        if sentence.strip() and (dimension != DIFFERENTIAL or _is_rival(item, classes[rival_C[item.index]]))
    }
    return Base(fitted, sha256(path)[:16], sentences)


def fit_rivals(knowledge: Knowledge, rival_names: Sequence[str]) -> Knowledge:
    """The knowledge base with each class's differential sentence set against its rival where one is written.

    Where the file holds no sentence for the rival that was found, the one it has stays and so does the rival it
    names: a contrast with another class is better than an invented one, and the audit reports the difference.
    """
    return knowledge.model_copy(
        update={"classes": tuple(_fit(item, rival) for item, rival in zip(knowledge.classes, rival_names, strict=True))}
    )


def _fit(item: ClassKnowledge, rival: str) -> ClassKnowledge:
    sentence = item.differential_alternatives.get(rival)
    if item.rival == rival or sentence is None:
        return item
    sentences = {**item.sentences, DIFFERENTIAL: sentence}
    return item.model_copy(update={"rival": rival, "rival_index": None, "sentences": sentences})


def _is_rival(item: ClassKnowledge, rival: ClassInfo) -> bool:
    return item.rival == rival.name and item.rival_index in (None, rival.index)
