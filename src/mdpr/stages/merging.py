"""The shards of a knowledge base put together: what describe would have written in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mdpr.config import DescribeParams
from mdpr.stages.outputs import whole_or_not_at_all


def merge_shards(
    shards: Mapping[str, Path], prepared: Path, probe: Path, knowledge: Path, params: DescribeParams
) -> None:
    """Write knowledge.json of all classes, audit.json of the whole, and index.html to read both; whole or not at all.

    `shards`: name -> folder that describe wrote with `describe.shard`. Raises `KnowledgeError` where they do not fit
    together, and as describe does for what the audit finds.
    """
    from mdpr.artifacts import parse_knowledge, read_classes, read_probe
    from mdpr.knowledge.delivery import deliver
    from mdpr.knowledge.generated import Gathered
    from mdpr.knowledge.shards import merge

    classes = read_classes(prepared)
    rival_C = read_probe(probe, [item.name for item in classes]).rival_C.tolist()
    merged = merge({name: parse_knowledge(path / "knowledge.json") for name, path in shards.items()}, classes)
    with whole_or_not_at_all([knowledge]) as (partial,):
        deliver(Gathered(merged, {}), classes, rival_C, partial, params)
