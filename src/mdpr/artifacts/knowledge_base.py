"""knowledge/: V = 5 sentences per class, where they come from, and the checks that none is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mdpr.artifacts.formats import Format, parse, read_json
from mdpr.errors import ArtifactError, KnowledgeError
from mdpr.params import DIMENSIONS

MAX_NAMED = 5
"""Classes that an error names."""

Name = Annotated[str, Field(min_length=1, max_length=1000)]


class ClassKnowledge(Format):
    """Five sentences about one class; `rival` is the class its differential sentence contrasts it with.

    `rival_index` says which one if names repeat; a hand-written file may leave it out. `completed`: the dimensions
    that a chat model wrote because a finished knowledge base lacked them.
    """

    index: int = Field(ge=0)
    name: Name
    rival: Name | None = None
    rival_index: int | None = Field(None, ge=0)
    sentences: dict[str, str]
    differential_alternatives: dict[Name, str] = Field(default_factory=dict)
    completed: tuple[str, ...] = ()


class Knowledge(Format):
    """The knowledge base: V = 5 sentences per class, and where they come from."""

    format: Literal["mdpr-knowledge/1"] = "mdpr-knowledge/1"
    provenance: dict[str, Any]
    dimensions: tuple[str, ...] = DIMENSIONS
    classes: tuple[ClassKnowledge, ...]

    def sentences_CV(self) -> list[list[str]]:
        """The sentences, a row per class; all must be there."""
        return [[item.sentences[key] for key in self.dimensions] for item in self.classes]


def parse_knowledge(path: Path) -> Knowledge:
    """A knowledge base as it stands, gaps included. Raises `KnowledgeError` if the file is not one."""
    if not path.exists():
        raise KnowledgeError(f"{path} is missing: run describe first, or start one by hand: mdpr knowledge new FILE")
    try:
        knowledge = parse(path, Knowledge, read_json(path), KnowledgeError)
    except ArtifactError as error:
        raise KnowledgeError(str(error)) from None
    if knowledge.dimensions != DIMENSIONS:
        raise KnowledgeError(f"{path}: dimensions must be {', '.join(DIMENSIONS)}, in this order")
    return knowledge


def read_unfinished(path: Path, class_names: Sequence[str] | None = None) -> Knowledge:
    """A knowledge base, gaps included, for exactly `class_names` if they are given, in their order.

    Classes in another order are matched by name. Raises `KnowledgeError` if the file is of other classes.
    """
    knowledge = parse_knowledge(path)
    if class_names is None:
        class_names = [item.name for item in knowledge.classes]
    knowledge = _ordered(knowledge, class_names)
    if len(knowledge.classes) != len(class_names):
        raise KnowledgeError(
            f"{path} describes {len(knowledge.classes)} classes, the data has {len(class_names)}"
            f"{_difference([item.name for item in knowledge.classes], class_names)}: "
            f"mdpr knowledge new FILE --earlier {path} writes one of this data with the sentences that there are"
        )
    for index, (item, name) in enumerate(zip(knowledge.classes, class_names, strict=True)):
        if item.index != index or item.name != name:
            raise KnowledgeError(f"{path}: class {index} is {item.name!r} (index {item.index}), the data has {name!r}")
        unknown = set(item.sentences) - set(DIMENSIONS)
        if unknown:
            raise KnowledgeError(f"{path}: class {index} ({name}) has an unknown dimension {min(unknown)}")
    return knowledge


def _difference(names: Sequence[str], class_names: Sequence[str]) -> str:
    """The first classes that only one of the two has, in brackets."""
    sides = {"without": set(class_names) - set(names), "with": set(names) - set(class_names)}
    parts = [f"{word} {', '.join(sorted(only)[:MAX_NAMED])}" for word, only in sides.items() if only]
    return f" ({'; '.join(parts)})" if parts else ""


def _ordered(knowledge: Knowledge, class_names: Sequence[str]) -> Knowledge:
    """The classes in the order of `class_names`; unchanged if they are other classes or names repeat."""
    index_of = {name: index for index, name in enumerate(class_names)}
    names = [item.name for item in knowledge.classes]
    if names == list(class_names) or len(index_of) != len(class_names) or sorted(names) != sorted(class_names):
        return knowledge
    classes = [
        item.model_copy(update={"index": index_of[item.name], "rival_index": index_of.get(item.rival or "")})
        for item in knowledge.classes
    ]
    return knowledge.model_copy(update={"classes": tuple(sorted(classes, key=lambda item: item.index))})


def read_knowledge(path: Path, class_names: Sequence[str] | None = None) -> Knowledge:
    """A complete knowledge base, for exactly `class_names` in order if they are given.

    Raises `KnowledgeError` that names the class and the dimension of the first gap; nothing is ever filled in.
    """
    knowledge = read_unfinished(path, class_names)
    for item in knowledge.classes:
        for key in DIMENSIONS:
            if not item.sentences.get(key, "").strip():
                raise KnowledgeError(f"{path}: class {item.index} ({item.name}) has no sentence for {key}: write one")
    return knowledge


def who_wrote(knowledge: Knowledge) -> str:
    """Where the sentences come from, in one line of what their provenance says."""

    def facts_of(provenance: Mapping[str, Any]) -> str:
        facts = ((key, fact) for key, fact in provenance.items() if isinstance(fact, str | float | int) and fact != "")
        return ", ".join(f"{key} {fact}" for key, fact in facts)

    base = knowledge.provenance.get("base")
    if not isinstance(base, Mapping):
        return facts_of(knowledge.provenance)
    completed = sum(len(item.completed) for item in knowledge.classes)
    of = len(knowledge.classes) * len(knowledge.dimensions)
    return f"{completed} of {of}: {facts_of(knowledge.provenance)}; the others: {facts_of(base)}"
