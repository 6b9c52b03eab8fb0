"""describe: five sentences a class, gathered and audited."""

from __future__ import annotations

from mdpr.config import DescribeParams
from mdpr.stages.definition import In, Out


def describe(prepared: In, probe: In, knowledge: Out, *, params: DescribeParams) -> None:
    """Write knowledge.json, complete for every class, and audit.json; raises `KnowledgeError` for a gap."""
    import logging
    from dataclasses import asdict
    from pathlib import Path

    from mdpr.artifacts import read_classes, read_knowledge, read_probe, write_json
    from mdpr.errors import CheckFailed
    from mdpr.knowledge.audit import audit
    from mdpr.knowledge.curated import fit_rivals

    names = [item.name for item in read_classes(prepared)]
    rival_names = [names[index] for index in read_probe(probe, names).rival_C]
    content = fit_rivals(read_knowledge(Path(params.path), names), rival_names)
    findings = audit(content, rival_names)

    knowledge.mkdir()
    write_json(knowledge / "knowledge.json", content)
    write_json(knowledge / "audit.json", {"findings": [asdict(finding) for finding in findings]})
    for finding in findings:
        where = f"{finding.class_name}, {finding.dimension}"
        logging.getLogger(__name__).info("audit %s: %s: %s", finding.level, where, finding.message)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise CheckFailed(
            f"{params.path}: class {first.class_index} ({first.class_name}), {first.dimension}: {first.message}{more}"
        )
