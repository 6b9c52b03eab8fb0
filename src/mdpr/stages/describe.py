"""describe: five sentences a class, gathered and audited."""

from __future__ import annotations

from mdpr.config import DescribeParams
from mdpr.stages.definition import In, Out


def describe(prepared: In, probe: In, knowledge: Out, *, params: DescribeParams) -> None:
    """Write knowledge.json, complete for every class, and audit.json.

    Raises `AnswersMissing` for a gap that a chat model left, `KnowledgeError` for one in a finished knowledge base,
    `CheckFailed` for an error of the audit where `strict` is set.
    """
    import logging
    from dataclasses import asdict

    from mdpr.artifacts import read_classes, read_probe, write_json
    from mdpr.knowledge.audit import audit
    from mdpr.knowledge.generated import explain_gaps
    from mdpr.knowledge.providers import PROVIDERS
    from mdpr.knowledge.verdict import reject, report

    classes = read_classes(prepared)
    names = [item.name for item in classes]
    rival_C = read_probe(probe, names).rival_C.tolist()
    gathered = PROVIDERS[params.provider](classes, rival_C, params)
    findings = explain_gaps(audit(gathered.knowledge, [names[index] for index in rival_C]), gathered.missing)

    knowledge.mkdir()
    write_json(knowledge / "audit.json", {"findings": [asdict(finding) for finding in findings]})
    if not gathered.missing:
        write_json(knowledge / "knowledge.json", gathered.knowledge)
    for line in report(findings):
        logging.getLogger(__name__).info(line)
    reject(findings, params)


def preview(prepared: In, probe: In, *, params: DescribeParams) -> None:
    """Print how many calls it takes, how many of them are answered already, and what the rest costs; ask nothing."""
    from mdpr.artifacts import read_classes, read_probe
    from mdpr.knowledge.generated import plan_generation

    classes = read_classes(prepared)
    if params.provider == "curated":
        print(f"describe reads {params.path}: no calls")
        return
    plan = plan_generation(classes, read_probe(probe, [item.name for item in classes]).rival_C.tolist(), params)
    print(f"calls: {plan.calls}, of which {plan.stored} are answered in {params.llm.store}")
    print(f"tokens of the others, about: {plan.usage.input_tokens:,} in, {plan.usage.output_tokens:,} out")
    print(f"cost, about: {plan.cost_usd:.2f} USD")


OTHERWISE = {"dry_run": preview}
