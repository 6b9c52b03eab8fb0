"""Names that others wrote are text everywhere: report, charts, CSV tables, summary, compare."""

from __future__ import annotations

import io
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from benchmarks.hostile_names import HOSTILE, foreign_markup, formulas
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mdpr.artifacts import Promotion, read_table
from mdpr.commands.results import Summary, comparison_tables, render_summary
from mdpr.errors import printable
from mdpr.evaluation.comparison import Run, compare
from mdpr.evaluation.report import charts
from mdpr.evaluation.report.document import ReportContent, make_figures, render_report
from mdpr.evaluation.report.figure import write_figures
from mdpr.evaluation.tables import Results


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def evil(content: Callable[..., ReportContent]) -> ReportContent:
    made: ReportContent = content(len(HOSTILE), 4, name=lambda index: HOSTILE[index])
    return made


def test_the_report_shows_every_name_as_text(evil: ReportContent, tmp_path: Path) -> None:
    figures = make_figures(evil)
    html = render_report(evil, figures)
    assert all(figure.svg for figure in figures)
    assert foreign_markup(html) == []
    assert all(letter.isprintable() or letter == "\n" for letter in html)
    assert all(printable(name) in unescape(html) for name in HOSTILE)
    write_figures(tmp_path / "figures", figures)
    for path in (tmp_path / "figures").iterdir():
        assert foreign_markup(path.read_text("utf-8")) == []


def test_tables_hold_no_formula_and_are_read_back_as_they_were(evil: ReportContent, tmp_path: Path) -> None:
    evil.results.write(tmp_path)
    assert [cell for path in tmp_path.glob("*.csv") for cell in formulas(path)] == []
    again = Results.read(tmp_path, evil.results.classes)
    for name in ("class", "rival"):
        assert list(again.per_class[name]) == list(evil.results.per_class[name])
    assert list(read_table(tmp_path, "per_class.csv")["class"]) == list(evil.results.per_class["class"])


def test_a_chart_that_fails_costs_the_chart(evil: ReportContent, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such mark")

    monkeypatch.setattr(charts, "_prior_per_class", broken)
    figures = make_figures(evil)
    assert [figure.name for figure in figures if not figure.svg] == ["hidden_prior"]
    assert "could not be drawn (ValueError)" in render_report(evil, figures)


def test_a_terminal_gets_no_control_character(evil: ReportContent, tmp_path: Path) -> None:
    table, predictions = evil.results.per_class, evil.results.predictions
    label_N = predictions["label"].to_numpy()
    runs = [
        Run(
            name,
            label_N,
            (predictions["base_top1"] == label_N).to_numpy(),
            list(table["class"]),
            list(table["shot"]),
            predictions["image"].to_numpy(),
            np.empty(0, np.int64),
        )
        for name in HOSTILE[:8]
    ]
    promotion = Promotion(
        decision="kept", reason="".join(HOSTILE), model_name="\x1b[31m", version="1", champion_before=None,
        champion_after=None, checks=(),
    )  # fmt: skip
    found = evil.results
    summary = Summary(
        found.scores, found.intervals, found.variants, found.routing, promotion, None, tmp_path / "\x07.html"
    )
    for text in (
        shown(comparison_tables(runs, compare(runs))),
        shown(render_summary(summary)),
    ):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "[bold]" in text


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_printable(text: str) -> None:
    assert printable(text).isprintable()
