"""What an audit means for the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice

from mdpr.errors import AnswersMissing, CheckFailed
from mdpr.knowledge.audit import Finding
from mdpr.knowledge.audit.finding import Level
from mdpr.params import DescribeParams

SHOWN: Mapping[Level, int] = {"error": 100, "warning": 10}  # of one check, in the log; audit.json has them all


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """A line a finding, errors first, check by check; of a check that found many the first ones, then how many more."""
    ordered = sorted(findings, key=lambda finding: (finding.level != "error", finding.check))
    for (level, check), found in groupby(ordered, key=lambda finding: (finding.level, finding.check)):
        for finding in islice(found, SHOWN[level]):
            yield f"audit {finding.level}: {_place(finding)}: {finding.message}"
        more = len(list(found))
        if more:
            yield f"audit: {more} more of {check} in audit.json"


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
