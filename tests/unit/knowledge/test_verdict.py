"""What is said of an audit: all of a few findings, the first of many."""

from __future__ import annotations

from mdpr.knowledge.audit import Finding
from mdpr.knowledge.audit.finding import Level
from mdpr.knowledge.verdict import SHOWN, report


def findings(level: Level, check: str, count: int) -> list[Finding]:
    return [Finding(level, check, index, f"c{index}", "functionality", f"{check} it is") for index in range(count)]


def test_errors_come_first_and_a_check_that_found_many_is_cut_short() -> None:
    many = SHOWN["warning"] + 7
    told = list(report([*findings("warning", "other_rival", many), *findings("error", "markup", 2)]))
    assert told[:3] == [
        "audit error: class 0 (c0), functionality: markup it is",
        "audit error: class 1 (c1), functionality: markup it is",
        "audit warning: class 0 (c0), functionality: other_rival it is",
    ]
    assert told[-1] == "audit: 7 more of other_rival in audit.json"
    assert len(told) == 2 + SHOWN["warning"] + 1


def test_nothing_found_is_nothing_said() -> None:
    assert list(report([])) == []
