"""The end of describe: the log of an audit, what follows from it, and the page, which runs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape, unescape
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mdpr.artifacts import ClassKnowledge, Knowledge, write_json
from mdpr.commands.inputs import knowledge as command
from mdpr.errors import AnswersMissing, CheckFailed, MdprError
from mdpr.knowledge.ask import UnusableReply
from mdpr.knowledge.audit import Finding, Level
from mdpr.knowledge.write import SHOWN, reject, render_knowledge, report
from mdpr.params import DIMENSIONS, DescribeParams

EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)>'


def sentences(name: str) -> dict[str, str]:
    return {key: f"{key} of the {name}" for key in DIMENSIONS}


def base(*classes: ClassKnowledge, author: str = "somebody") -> Knowledge:
    return Knowledge(provenance={"provider": "curated", "author": author}, classes=classes)


def lamp(**changes: object) -> ClassKnowledge:
    given = {"index": 0, "name": "lamp", "rival": "candle", "rival_index": 1, "sentences": sentences("lamp")}
    return ClassKnowledge.model_validate({**given, **changes})


def class_items(html: str) -> list[str]:
    return re.findall(r'<li class="panel".*?</li>\n(?=<li class="panel"|</ul>)', html, re.DOTALL)


def test_every_sentence_contrast_and_finding_stands_at_its_class() -> None:
    candle = ClassKnowledge(
        index=1,
        name="candle",
        sentences=sentences("candle"),
        completed=DIMENSIONS[-1:],
        differential_alternatives={"torch": "a contrast with the torch"},
    )
    found = Finding("warning", "too_short", 1, "candle", DIMENSIONS[2], "this one says little")
    first, second = class_items(render_knowledge(base(lamp(), candle), [found]))
    assert "rival: candle" in first
    assert all(text in first for text in sentences("lamp").values())
    assert "finding" not in first
    assert all(text in second for text in sentences("candle").values())
    assert "a contrast with the torch" in second
    assert second.count("(completed)") == 1
    where = second.index(sentences("candle")[DIMENSIONS[2]]), second.index(sentences("candle")[DIMENSIONS[3]])
    assert where[0] < second.index("warning: this one says little") < where[1]


def test_a_missing_sentence_is_said_to_be_missing_and_counted() -> None:
    given = sentences("lamp")
    given[DIMENSIONS[0]] = " "
    del given[DIMENSIONS[1]]
    html = render_knowledge(base(lamp(sentences=given)), [])
    assert html.count('<em class="bad">missing</em>') == 2
    assert "3 of 5 sentences are there." in html
    assert "All 5 sentences are there." in render_knowledge(base(lamp()), [])


def test_nothing_from_a_model_or_a_file_becomes_markup() -> None:
    evil = lamp(
        name=EVIL,
        rival=EVIL,
        sentences=dict.fromkeys(DIMENSIONS, EVIL),
        differential_alternatives={EVIL: EVIL},
    )
    found = [Finding("error", "markup", 0, EVIL, DIMENSIONS[0], EVIL)]
    html = render_knowledge(base(evil, author=EVIL), found)
    assert EVIL not in html
    shown = len(["name", "rival", *DIMENSIONS, "contrast with another rival", "finding", "author"])
    assert html.count(escape(EVIL).replace("&quot;", "&#34;")) == shown
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in unescape(
        html
    )
    assert re.findall(r"<(?:link|img|iframe|object|embed)\b", html) == []


def test_replies_without_a_sentence_are_shown_as_text() -> None:
    reply = UnusableReply(0, EVIL, DIMENSIONS[0], f"no JSON {EVIL}", f"I would say {EVIL}")
    empty = UnusableReply(0, "lamp", DIMENSIONS[1], "the answer is empty", "")
    html = render_knowledge(base(lamp()), [], [reply, empty])
    assert EVIL not in html
    assert html.count(escape(EVIL).replace("&quot;", "&#34;")) == 3
    assert "2 replies of the chat model without a sentence" in html
    assert "without a sentence" not in render_knowledge(base(lamp()), [])


def test_a_sentence_of_megabytes_is_shortened() -> None:
    html = render_knowledge(
        base(lamp(sentences=dict.fromkeys(DIMENSIONS, "lamp " * 2_000_000)), author="x" * 10**6), []
    )
    assert len(html) < 50_000


def audit_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, ["audit", *map(str, arguments)], catch_exceptions=True)


def test_the_audit_command_writes_the_page_whole_or_says_why_not(project_root: Path, tmp_path: Path) -> None:
    shipped, page = project_root / "data" / "embedded" / "knowledge" / "cifar10.json", tmp_path / "page.html"
    assert audit_command(shipped, "--page", page).exit_code == 0
    assert len(class_items(page.read_text("utf-8"))) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert audit_command(shipped, "--page", tmp_path / "new" / "page.html").exit_code == 0
    refused = audit_command(shipped, "--page", "/proc/no/page.html").exception
    assert isinstance(refused, MdprError)
    assert str(refused).endswith("page.html cannot be written: No such file or directory")


def test_a_faulty_base_has_its_page_too(tmp_path: Path) -> None:
    file, page = tmp_path / "base.json", tmp_path / "page.html"
    chatter = "As a language model I cannot see the lamp that you ask me about."
    write_json(file, base(lamp(sentences={**sentences("lamp"), DIMENSIONS[0]: chatter})))
    assert isinstance(audit_command(file, "--page", page).exception, CheckFailed)
    assert '<dd class="finding bad">error: ' in page.read_text("utf-8")


def test_the_page_of_a_thousand_classes_stays_small(project_root: Path, tmp_path: Path) -> None:
    shipped, page = project_root / "data" / "embedded" / "knowledge" / "imagenet.json", tmp_path / "page.html"
    assert audit_command(shipped, "--page", page).exit_code == 0
    assert len(class_items(page.read_text("utf-8"))) == 1000
    assert page.stat().st_size < 3e6


def many_findings(level: Level, check: str, count: int) -> list[Finding]:
    return [Finding(level, check, index, f"c{index}", "functionality", f"{check} it is") for index in range(count)]


def test_errors_come_first_and_a_check_that_found_many_is_cut_short() -> None:
    many = SHOWN["warning"] + 7
    told = list(report([*many_findings("warning", "other_rival", many), *many_findings("error", "markup", 2)]))
    assert told[:3] == [
        "audit error: class 0 (c0), functionality: markup it is",
        "audit error: class 1 (c1), functionality: markup it is",
        "audit warning: class 0 (c0), functionality: other_rival it is",
    ]
    assert told[-1] == "audit: 7 more of other_rival in audit.json"
    assert len(told) == 2 + SHOWN["warning"] + 1


def test_nothing_found_is_nothing_said() -> None:
    assert list(report([])) == []


def params(**settings: object) -> DescribeParams:
    llm = {"model": "m"}
    return DescribeParams.model_validate({"provider": "llm", "llm": llm, **settings})


def test_errors_name_the_ways_on() -> None:
    found = many_findings("error", "markup", 2)
    for settings in (params(), params(repair=True), params(provider="curated")):
        with pytest.raises(CheckFailed, match=r"and 1 more.*describe\.strict = false") as raised:
            reject(found, settings)
        assert ("--repair" in str(raised.value)) == (settings.provider == "llm" and not settings.repair)
    reject(found, params(strict=False))
    reject(many_findings("warning", "markup", 2), params())


def test_a_rerun_is_advised_only_if_it_may_help() -> None:
    found = many_findings("error", "missing", 3)
    with pytest.raises(AnswersMissing, match="run again"):
        reject(found, params(strict=False), again=True)
    with pytest.raises(AnswersMissing, match=r"knowledge\.json") as raised:
        reject(found, params(strict=False), again=False)
    assert "run again" not in str(raised.value)
