"""Where a knowledge base comes from: the table behind `describe.provider`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from mdpr.artifacts import ClassInfo, read_knowledge
from mdpr.knowledge.curated import fit_rivals
from mdpr.knowledge.generated import Gathered, generate
from mdpr.knowledge.local import local_settings, serving
from mdpr.knowledge.shards import shard_indices
from mdpr.params import DescribeParams

logger = logging.getLogger(__name__)
Provider = Callable[[Sequence[ClassInfo], Sequence[int], DescribeParams], Gathered]


def from_file(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Gathered:
    """The finished knowledge base of `params.path`, its contrasts fitted to the rivals that were found.

    Raises `KnowledgeError` where it has a gap or is of other classes.
    """
    names = [item.name for item in classes]
    rivals = [names[index] for index in rival_C]
    knowledge = fit_rivals(read_knowledge(Path(params.path), names), rivals)
    others = sum(item.rival != rival for item, rival in zip(knowledge.classes, rivals, strict=True))
    if others:
        logger.info(
            "%s has no contrast with the rivals of %d of %d classes; --provider completed asks a chat model for them",
            params.path,
            others,
            len(names),
        )
    chosen = shard_indices(params.shard, len(classes))
    return Gathered(knowledge.model_copy(update={"classes": tuple(knowledge.classes[index] for index in chosen)}), {})


def from_local_model(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Gathered:
    """`generate` with the small model that is served from this process for as long as it takes."""
    llm = local_settings(params.llm)
    with serving() as address:
        return generate(classes, rival_C, params.model_copy(update={"llm": llm}), reached_at=address)


PROVIDERS: dict[str, Provider] = {
    "curated": from_file,
    "completed": generate,
    "llm": generate,
    "local": from_local_model,
}
