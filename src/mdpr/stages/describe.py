"""describe: five sentences per class, gathered and audited."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mdpr.params import DescribeParams
from mdpr.stages.outputs import whole_or_not_at_all
from mdpr.stages.stage import In, Out


def describe(prepared: In, probe: In, knowledge: Out, *, params: DescribeParams) -> str:
    """Write knowledge.json, complete for every class (of `shard` if it is set), audit.json and index.html.

    Raises `AnswersMissing` for a gap that a chat model left, `KnowledgeError` for one in a finished knowledge base,
    `CheckFailed` for an error of the audit if `strict` is set.
    """
    from mdpr.artifacts import read_classes, read_probe
    from mdpr.knowledge.bases import PROVIDERS
    from mdpr.knowledge.write import write_knowledge

    classes = read_classes(prepared)
    rival_C = read_probe(probe, [item.name for item in classes]).rival_C.tolist()
    gathered = PROVIDERS[params.provider](classes, rival_C, params)
    findings = write_knowledge(gathered, classes, rival_C, knowledge, params)
    written = gathered.knowledge.classes
    sentences = sum(len(item.sentences) for item in written)
    return f"described: {len(written):,} classes, {sentences:,} sentences, {len(findings):,} findings of the audit"


def merge(shards: Mapping[str, Path], prepared: Path, probe: Path, knowledge: Path, params: DescribeParams) -> None:
    """Write what `describe` would have written of all classes, from its shards; whole or not at all.

    `shards`: name -> folder that describe wrote with `describe.shard`. Raises `KnowledgeError` if they do not fit
    together, and as describe does for what the audit finds.
    """
    from mdpr.artifacts import parse_knowledge, read_classes, read_probe
    from mdpr.knowledge import bases
    from mdpr.knowledge.write import write_knowledge

    classes = read_classes(prepared)
    rival_C = read_probe(probe, [item.name for item in classes]).rival_C.tolist()
    merged = bases.merge({name: parse_knowledge(path / "knowledge.json") for name, path in shards.items()}, classes)
    with whole_or_not_at_all({"knowledge": knowledge}, {**shards, "prepared": prepared, "probe": probe}) as (partial,):
        write_knowledge(bases.Gathered(merged), classes, rival_C, partial, params)


def preview(prepared: In, probe: In, *, params: DescribeParams) -> None:
    """Print the number of calls, how many are answered already, and the cost of the others; no call is made."""
    from mdpr.artifacts import read_classes, read_probe
    from mdpr.knowledge.bases import plan_generation

    classes = read_classes(prepared)
    if params.provider == "curated":
        print(f"describe reads {params.path}: no calls")
        return
    plan = plan_generation(classes, read_probe(probe, [item.name for item in classes]).rival_C.tolist(), params)
    print(f"calls: {plan.calls}, of which {plan.stored} are answered in {params.llm.store}")
    print(f"tokens of the others, about: {plan.usage.input_tokens:,} in, {plan.usage.output_tokens:,} out")
    if plan.cost_usd is None:
        print("cost: unknown; set describe.llm.input_usd_per_million and output_usd_per_million")
    else:
        print(f"cost, about: {plan.cost_usd:.2f} USD")


OTHERWISE = {"dry_run": preview}
