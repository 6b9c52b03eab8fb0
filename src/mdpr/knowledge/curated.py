"""A finished knowledge base, fitted to the rivals that the probe found."""

from __future__ import annotations

from collections.abc import Sequence

from mdpr.artifacts import ClassKnowledge, Knowledge
from mdpr.knowledge.dimensions import DIFFERENTIAL


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
    return item.model_copy(update={"rival": rival, "sentences": {**item.sentences, DIFFERENTIAL: sentence}})
