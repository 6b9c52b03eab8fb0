"""Data Docs that load nothing from a network: Great Expectations' own sections inside a page of ours.

Great Expectations builds a site whose pages load style sheets and scripts from other hosts. Its section
renderer gives the same content as plain HTML; page frame and style are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from great_expectations.core import ExpectationSuiteValidationResult
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaSectionView

from mdpr.artifacts import DataCard
from mdpr.data.expectations import Finding, Findings

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #18794e; --bad: #c62a2f; --warn: #ad5700; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h5 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
.badge { background: #8883; border-radius: .3rem; padding: 0 .3rem; }
.good, .text-success { color: var(--good); }
.bad, .text-danger { color: var(--bad); }
.warn, .text-warning { color: var(--warn); }
.fa-check-circle::before { content: "✓"; font-style: normal; }
.fa-times::before { content: "✗"; font-style: normal; }
.fa-exclamation-triangle::before { content: "!"; font-style: normal; }
"""


def write_data_docs(
    folder: Path,
    findings: Findings,
    results: Mapping[str, ExpectationSuiteValidationResult],
    card: DataCard,
) -> None:
    """index.html, all expectations in one list, and a page a table with Great Expectations' own wording."""
    (folder / "index.html").write_text(_page("Data Docs", _overview(findings, card)), encoding="utf-8")
    for name, result in results.items():
        back = '<p><a href="index.html">All expectations</a></p>'
        (folder / f"{name}.html").write_text(_page(name, back + _sections(result)), encoding="utf-8")


def _sections(result: ExpectationSuiteValidationResult) -> str:
    """The body of Great Expectations' page, without its first section: load times change with every run."""
    document = ValidationResultsPageRenderer().render(result)
    view = DefaultJinjaSectionView()
    sections = [section.to_json_dict() for section in document.sections[1:]]
    return "\n".join(
        view.render({"section": section, "section_loop": {"index": index}})
        for index, section in enumerate(sections, start=1)
    )


def _overview(findings: Findings, card: DataCard) -> str:
    verdict = '<b class="good">usable</b>' if findings.success else '<b class="bad">not usable</b>'
    counts = ", ".join(f"{images:,} {split}" for split, images in card.images.items())
    head = "".join(f"<th>{title}</th>" for title in ("", "Table", "Expectation", "Level", "Observed"))
    rows = "\n".join(map(_row, findings.expectations))
    return (
        f"<p>Source <b>{escape(card.source)}</b>, profile {card.profile}, seed {card.seed}: {counts} images. "
        f"The data set is {verdict}.</p>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    )


def _row(finding: Finding) -> str:
    style, mark = ("good", "✓") if finding.success else ("bad", "✗") if finding.level == "error" else ("warn", "!")
    cells = (
        f'<span class="{style}">{mark}</span>',
        f'<a href="{finding.table}.html">{finding.table}</a>',
        escape(finding.name.replace("_", " ")),
        finding.level,
        escape(finding.observed),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )
