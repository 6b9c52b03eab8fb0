"""Shares of the classes, described apart, and one knowledge base of them all again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mdpr.artifacts import ClassInfo, ClassKnowledge, Knowledge
from mdpr.errors import ConfigError, KnowledgeError


def shard_indices(shard: str, classes: int) -> range:
    """The class indices of `shard`, written I/N; all of them where it is empty.

    Shards are runs of neighbouring classes whose sizes differ by one at most: every class is in exactly one of the N.
    Raises `ConfigError` where there are more shards than classes.
    """
    if not shard:
        return range(classes)
    number, count = (int(part) for part in shard.split("/"))
    if count > classes:
        raise ConfigError(f"describe.shard = {shard}: there are only {classes} classes; make fewer shards")
    return range((number - 1) * classes // count, number * classes // count)


def merge(shards: Mapping[str, Knowledge], classes: Sequence[ClassInfo]) -> Knowledge:
    """One knowledge base of all `classes`, in their order, from the shards (name -> what is in it).

    Raises `KnowledgeError` where shards were made with different settings, overlap, leave a class out, or speak of
    other classes than the data has.
    """
    if not shards:
        raise KnowledgeError("there is no shard to merge")
    first, *_ = shards
    found: dict[int, tuple[str, ClassKnowledge]] = {}
    for name, knowledge in shards.items():
        _check_origin(name, knowledge, first, shards[first])
        for item in knowledge.classes:
            if item.index >= len(classes) or item.name != classes[item.index].name:
                own = repr(classes[item.index].name) if item.index < len(classes) else f"only {len(classes)} classes"
                raise KnowledgeError(f"{name}: class {item.index} is {item.name!r}, the data has {own}")
            if item.index in found:
                other = found[item.index][0]
                raise KnowledgeError(f"class {item.index} ({item.name}) is in {other} and in {name}: give each once")
            found[item.index] = (name, item)
    for info in classes:
        if info.index not in found:
            raise KnowledgeError(f"class {info.index} ({info.name}) is in no shard: describe its shard and add it")
    return shards[first].model_copy(update={"classes": tuple(found[info.index][1] for info in classes)})


def _check_origin(name: str, knowledge: Knowledge, first: str, reference: Knowledge) -> None:
    ours, theirs = knowledge.provenance, reference.provenance
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            raise KnowledgeError(
                f"{name} has {key} = {ours.get(key)!r}, {first} has {theirs.get(key)!r}: "
                "describe every shard with the same settings"
            )
