"""The end of describe: the knowledge base is audited, written with its page, and refused if it is unfit."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path

from mdpr.artifacts import ClassInfo, ClassKnowledge, Knowledge, who_wrote, write_json
from mdpr.errors import AnswersMissing, CheckFailed
from mdpr.knowledge.ask import UnusableReply
from mdpr.knowledge.audit import Finding, Level, audit
from mdpr.knowledge.bases import Gathered
from mdpr.knowledge.wording import MAX_CHARACTERS
from mdpr.pages import render_page
from mdpr.params import DescribeParams

logger = logging.getLogger(__name__)
SHOWN: Mapping[Level, int] = {"error": 100, "warning": 10}  # per check, in the log; audit.json has them all


@dataclass(frozen=True)
class Entry:
    """One sentence on the page; `text` is empty if it is missing."""

    dimension: str
    text: str
    completed: bool
    findings: Sequence[Finding]


def write_knowledge(
    gathered: Gathered, classes: Sequence[ClassInfo], rival_C: Sequence[int], folder: Path, params: DescribeParams
) -> list[Finding]:
    """Write knowledge.json, audit.json and index.html into the new folder `folder`; returns the audit's findings.

    In knowledge.json a missing sentence is empty: the file can be edited and read back by provider `completed`.
    rival_C: for each of all `classes` the index of the class it is most confused with. Raises `AnswersMissing` if a
    sentence is missing, `CheckFailed` for an error of the audit if `strict` is set.
    """
    knowledge, missing = _with_gaps(gathered.knowledge), gathered.answers.missing
    findings = [
        replace(finding, message=f"no sentence: {missing[finding.class_index, finding.dimension]}")
        if finding.check == "missing" and (finding.class_index, finding.dimension) in missing
        else finding
        for finding in audit(knowledge, [classes[rival_C[item.index]].name for item in knowledge.classes])
    ]
    replies = gathered.answers.replies
    folder.mkdir()
    content = {"findings": [asdict(item) for item in findings], "unusable_replies": [asdict(item) for item in replies]}
    write_json(folder / "audit.json", content)
    (folder / "index.html").write_text(render_knowledge(knowledge, findings, replies), encoding="utf-8")
    write_json(folder / "knowledge.json", knowledge)
    for line in report(findings):
        logger.info(line)
    reject(findings, params, again=gathered.answers.again)
    return findings


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """One line per finding, errors first, check by check; of a check with many findings the first ones and a count."""
    ordered = sorted(findings, key=lambda finding: (finding.level != "error", finding.check))
    for (level, check), found in groupby(ordered, key=lambda finding: (finding.level, finding.check)):
        for finding in islice(found, SHOWN[level]):
            yield f"audit {finding.level}: {finding.where}: {finding.message}"
        if more := len(list(found)):
            yield f"audit: {more} more of {check} in audit.json"


def reject(findings: Sequence[Finding], params: DescribeParams, again: bool = True) -> None:
    """Raises `AnswersMissing` for a missing sentence, `CheckFailed` for other errors if `strict` is set.

    `again`: whether asking once more may help.
    """
    missing = [finding for finding in findings if finding.check == "missing"]
    if missing:
        draft = "write the missing sentences into knowledge.json and read it back by provider = completed"
        remedy = "run again to ask for the rest" if again else f"change describe.llm, or {draft}"
        raise AnswersMissing(f"{_summary(missing)}; all answers are stored: {remedy}")
    errors = [finding for finding in findings if finding.level == "error"]
    if errors and params.strict:
        source = params.path if params.provider == "curated" else "describe"
        repair = "" if params.provider == "curated" or params.repair else "--repair asks for them once more, "
        raise CheckFailed(f"{source}: {_summary(errors)}; {repair}describe.strict = false only reports them")


def render_knowledge(knowledge: Knowledge, findings: Sequence[Finding], replies: Sequence[UnusableReply] = ()) -> str:
    """index.html: every sentence with the findings of the audit, and the first replies that held no sentence."""
    found: dict[tuple[int, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        found[finding.class_index, finding.dimension].append(finding)

    def entries(item: ClassKnowledge) -> list[Entry]:
        return [
            Entry(key, _shortened(item.sentences.get(key, "").strip()), key in item.completed, found[item.index, key])
            for key in knowledge.dimensions
        ]

    classes = [(item, entries(item)) for item in knowledge.classes]
    return render_page(
        "mdpr.knowledge",
        "knowledge.html.j2",
        "knowledge.js",
        title=f"Knowledge base of {len(classes):,} classes",
        summary=_counts(classes, findings),
        origin=_shortened(who_wrote(knowledge)),
        checks=sorted(Counter((finding.level, finding.check) for finding in findings).items()),
        replies=replies,
        classes=classes,
    )


def _with_gaps(knowledge: Knowledge) -> Knowledge:
    """The knowledge base with an empty sentence in every gap."""
    classes = (
        item.model_copy(update={"sentences": {key: item.sentences.get(key, "") for key in knowledge.dimensions}})
        for item in knowledge.classes
    )
    return knowledge.model_copy(update={"classes": tuple(classes)})


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."


def _counts(classes: Sequence[tuple[ClassKnowledge, Sequence[Entry]]], findings: Sequence[Finding]) -> str:
    texts = [entry.text for _, entries in classes for entry in entries]
    written, levels = sum(map(bool, texts)), Counter(finding.level for finding in findings)
    of = "All" if written == len(texts) else f"{written:,} of"
    return (
        f"{of} {len(texts):,} sentences are there. "
        f"Errors found by the audit: {levels['error']:,}; warnings: {levels['warning']:,}."
    )


def _summary(findings: Sequence[Finding]) -> str:
    first, more = findings[0], len(findings) - 1
    return f"{first.where}: {first.message}" + (f" (and {more} more)" if more else "")
