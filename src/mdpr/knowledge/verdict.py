"""What an audit means for the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mdpr.config import DescribeParams
from mdpr.errors import AnswersMissing, CheckFailed
from mdpr.knowledge.audit import Finding

SHOWN = 100  # findings in the log; audit.json has them all


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """A line a finding, errors first."""
    for finding in sorted(findings, key=lambda finding: finding.level != "error")[:SHOWN]:
        yield f"audit {finding.level}: {_place(finding)}: {finding.message}"
    if len(findings) > SHOWN:
        yield f"audit: {len(findings) - SHOWN} more in audit.json"


def reject(findings: Sequence[Finding], params: DescribeParams) -> None:
    """Raises `AnswersMissing` where a sentence is missing, `CheckFailed` where `strict` is set and there are errors."""
    missing = [finding for finding in findings if finding.check == "missing"]
    if missing:
        raise AnswersMissing(f"{_summary(missing)}; what was answered is stored: run again to ask for the rest")
    errors = [finding for finding in findings if finding.level == "error"]
    if errors and params.strict:
        source = params.path if params.provider == "curated" else "describe"
        remedy = "" if params.provider == "curated" or params.repair else "; --repair asks for them once more"
        raise CheckFailed(f"{source}: {_summary(errors)}{remedy}")


def _summary(findings: Sequence[Finding]) -> str:
    first, more = findings[0], len(findings) - 1
    return f"{_place(first)}: {first.message}" + (f" (and {more} more)" if more else "")


def _place(finding: Finding) -> str:
    return f"class {finding.class_index} ({finding.class_name}), {finding.dimension}"
