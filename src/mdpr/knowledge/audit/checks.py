"""The table of checks, and the audit that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mdpr.artifacts import Knowledge
from mdpr.knowledge.audit import contrast, repetition, wording
from mdpr.knowledge.audit.finding import Finding, Level, Line, alternatives_of, lines_of
from mdpr.knowledge.dimensions import DIFFERENTIAL

# Name -> level and check. Of a sentence that is not there, only that is said.
LINE_CHECKS: dict[str, tuple[Level, Callable[[Line], str | None]]] = {
    "too_short": ("error", wording.too_short),
    "too_long": ("error", wording.too_long),
    "question": ("error", wording.question),
    "chatter": ("error", wording.chatter),
    "instruction": ("error", wording.instruction),
    "markup": ("error", wording.markup),
    "language": ("error", wording.language),
    "about_rival": ("error", contrast.about_rival),
    "names_rival": ("warning", contrast.names_rival),
    "no_contrast": ("warning", contrast.no_contrast),
    "rival_in_name": ("warning", contrast.rival_in_name),
    "several_sentences": ("warning", wording.several_sentences),
}
BASE_CHECKS: dict[str, tuple[Level, Callable[[Sequence[Line]], Iterator[tuple[Line, str]]]]] = {
    "repeated": ("error", repetition.repeated),
    "near_duplicate": ("warning", repetition.near_duplicate),
    "other_class": ("warning", repetition.other_class),
}


def audit(
    knowledge: Knowledge, rival_names: Sequence[str] | None = None, *, alternatives: bool = False
) -> list[Finding]:
    """Every finding, in order of class and dimension.

    `rival_names`: the rivals that the probe found, a class each; without them the choice of rivals is not looked at.
    With `alternatives`, the differential sentences that are set against other classes are audited as well.
    """
    lines = list(lines_of(knowledge))
    if alternatives:
        lines += alternatives_of(knowledge)
    written = [line for line in lines if line.sentence]
    findings = [line.finding("error", "missing", "no sentence") for line in lines if not line.sentence]
    for line in written:
        for check, (level, fault) in LINE_CHECKS.items():
            message = fault(line)
            if message:
                findings.append(line.finding(level, check, message))
    for check, (level, faults) in BASE_CHECKS.items():
        findings += [line.finding(level, check, message) for line, message in faults(written)]
    if rival_names is not None:
        findings += _other_rival(knowledge, rival_names)
    if alternatives:
        findings += _no_rival(knowledge)
    order = {key: place for place, key in enumerate(knowledge.dimensions)}
    return sorted(findings, key=lambda finding: (finding.class_index, order[finding.dimension]))


def _other_rival(knowledge: Knowledge, rival_names: Sequence[str]) -> Iterator[Finding]:
    for item, rival in zip(knowledge.classes, rival_names, strict=True):
        if item.rival != rival:
            message = f"contrasts with {item.rival}, the frozen model confuses it with {rival}"
            yield Finding("warning", "other_rival", item.index, item.name, DIFFERENTIAL, message)


def _no_rival(knowledge: Knowledge) -> Iterator[Finding]:
    """An alternative is found by its rival's name: under any other it is never used."""
    names = {item.name for item in knowledge.classes}
    for line in alternatives_of(knowledge):
        if line.rival not in names:
            yield line.finding("error", "no_rival", "no class of the label set has this name")
