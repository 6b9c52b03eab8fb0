"""index.html of a knowledge base: every sentence to read, with what the audit says of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mdpr.artifacts import ClassKnowledge, Knowledge, who_wrote
from mdpr.knowledge.audit import Finding
from mdpr.pages import render_page


@dataclass(frozen=True)
class Entry:
    """One sentence on the page; `text` is empty where there is none."""

    dimension: str
    text: str
    completed: bool
    findings: Sequence[Finding]


def render_knowledge(knowledge: Knowledge, findings: Sequence[Finding]) -> str:
    """The page as one HTML document."""
    found: dict[tuple[int, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        found[finding.class_index, finding.dimension].append(finding)

    def entries(item: ClassKnowledge) -> list[Entry]:
        return [
            Entry(key, item.sentences.get(key, "").strip(), key in item.completed, found[item.index, key])
            for key in knowledge.dimensions
        ]

    classes = [(item, entries(item)) for item in knowledge.classes]
    return render_page(
        "mdpr.knowledge",
        "knowledge.html.j2",
        "knowledge.js",
        title=f"Knowledge base of {len(classes):,} classes",
        summary=_summary(classes, findings),
        origin=who_wrote(knowledge),
        checks=sorted(Counter((finding.level, finding.check) for finding in findings).items()),
        classes=classes,
    )


def _summary(classes: Sequence[tuple[ClassKnowledge, Sequence[Entry]]], findings: Sequence[Finding]) -> str:
    texts = [entry.text for _, entries in classes for entry in entries]
    written, levels = sum(map(bool, texts)), Counter(finding.level for finding in findings)
    of = "All" if written == len(texts) else f"{written:,} of"
    return (
        f"{of} {len(texts):,} sentences are there. "
        f"Errors found by the audit: {levels['error']:,}; warnings: {levels['warning']:,}."
    )
