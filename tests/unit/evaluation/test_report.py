"""The report is one safe, self-contained file, at any number of classes."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import resource
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from tests.unit.evaluation.conftest import PICTURES

from mdpr.artifacts import Check, ClassInfo, Promotion
from mdpr.evaluation.predictions import Predictions
from mdpr.evaluation.report.document import ReportContent, make_figures
from mdpr.evaluation.report.figure import ADDRESS_SPACE_MB, write_figures
from mdpr.evaluation.score_table import points
from mdpr.evaluation.tables import Results

Render = Callable[[ReportContent], str]
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags with their attributes, and the text of scripts and table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.lasttag == "script" and data.strip() else self.text).append(data)


@pytest.fixture(scope="module")
def made(content: Callable[..., ReportContent]) -> ReportContent:
    return content(10, 50)


@pytest.fixture(scope="module")
def html(made: ReportContent, html_of: Render) -> str:
    return html_of(made)


@pytest.mark.parametrize(("classes", "images"), [(10, 50), (1000, 4)])
def test_report_stays_small(content: Callable[..., ReportContent], html_of: Render, classes: int, images: int) -> None:
    made = content(classes, images, gallery_images=24)
    html = html_of(made)
    assert len(html.encode()) < 5e6
    rows = html.split('<table id="classes">')[1].split("</table>")[0].count("<tr>")
    assert rows == classes + 1


def test_report_loads_nothing_from_outside(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert tag not in {"link", "iframe", "object", "embed", "base"}
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert re.search(r"localStorage|sessionStorage|fetch\(|XMLHttpRequest", html) is None


def test_only_the_reports_own_script_may_run(html: str) -> None:
    page = Page(html)
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_class_name_of_html_stays_text(content: Callable[..., ReportContent], html_of: Render) -> None:
    html = html_of(content(10, 20, name=lambda index: f"{EVIL} {index}"))
    page = Page(html)
    assert EVIL not in html
    assert len(page.scripts) == 1
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert any(EVIL in text for text in page.text)
    assert any(EVIL in (attributes.get("alt") or "") for tag, attributes in page.tags if tag == "img")


def test_figures_on_the_page_are_those_of_the_scores(made: ReportContent, html: str) -> None:
    for group, value in made.results.scores["fused"].items():
        if group in ("all", "many", "medium", "few"):
            low, high = made.results.intervals.accuracy["fused"][group]
            assert f'<div class="value">{points(value)}<small> %</small></div>' in html
            assert f"{points(low)} to {points(high)}" in html


def test_every_chart_and_image_has_a_text_alternative(html: str) -> None:
    tags = Page(html).tags
    alternatives = [attributes["aria-label"] for _, attributes in tags if attributes.get("role") == "img"]
    assert len(alternatives) == html.count("<figure>") + 1 == 9  # the confusion matrix has two views
    assert all(text and re.search(r"\d", text) for text in alternatives)
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")


def test_ids_are_unique_on_the_page(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_without_routing_and_gallery_their_parts_are_gone(
    content: Callable[..., ReportContent], html_of: Render, html: str
) -> None:
    parts = (
        *("Which knowledge was consulted", "Fused (final answer)", "Test images of the tail", "over base"),
        "Two pictures of one class",
    )
    assert all(part in html for part in parts)
    plain = html_of(content(10, 20, routing=False, gallery_images=0))
    assert not any(part in plain for part in parts)
    assert "over zero-shot" in plain


def test_the_first_pictures_are_of_one_class_and_routed_differently(
    made: ReportContent, html: str, content: Callable[..., ReportContent], html_of: Render
) -> None:
    first, second = made.gallery[:2]
    assert html.index(f"image {first.index}<") < html.index(f"image {second.index}<") < html.index('id="branches"')
    assert all(html.count(f"image {item.index}<") == 1 for item in made.gallery)
    assert (first.actual, first.sentences) == (second.actual, second.sentences)
    assert np.abs(np.subtract(first.routing, second.routing)).max() > 0.05
    one = html_of(content(10, 50, gallery_images=1))
    assert "Two pictures of one class" not in one
    assert "Test images of the tail" in one


def test_tooltips_are_text_and_name_the_class(content: Callable[..., ReportContent], html_of: Render) -> None:
    html = html_of(content(10, 20, name=lambda index: f"{EVIL} {index}"))
    tips = re.findall(r"<title>([^<]*)</title></(?:path|line)>", html)
    assert any("&lt;script&gt;alert(1)&lt;/script&gt; 3" in text for text in tips)
    assert html.count("</title></") == len(tips)
    assert "tip:" not in html


def test_promotion_is_shown_or_said_to_be_undecided(made: ReportContent, html: str, html_of: Render) -> None:
    assert "Not decided yet" in html
    check = Check.model_construct(name="few", value=-1.5, threshold=-1.0, passed=False)
    decision = Promotion.model_construct(
        decision="kept",
        reason="few: too low",
        model_name="mdpr",
        version="7",
        champion_before="6",
        champion_after="6",
        checks=(check,),
    )
    decided = html_of(dataclasses.replace(made, promotion=decision))
    assert "Not decided yet" not in decided
    assert "Not promoted" in decided
    assert "few: too low" in decided
    assert "✗ failed" in decided


def test_an_audit_that_is_clean_or_faulty_is_said_so(made: ReportContent, html: str, html_of: Render) -> None:
    assert "0 errors, 1 warnings" in html
    assert "No fault was found" in html_of(dataclasses.replace(made, audit=[]))


def test_figures_are_drawn_as_files_that_stand_alone(made: ReportContent, tmp_path: Path) -> None:
    figures = make_figures(made)
    written = write_figures(tmp_path / "figures", figures)
    assert {path.stem for path in written} == {figure.name for figure in figures} | {"confusion_zoom"}
    for path in written:
        root = ElementTree.parse(path).getroot()  # noqa: S314 - our own file
        assert root.tag.endswith("svg")
        assert "".join(root.itertext()).strip()


@pytest.mark.parametrize("images", [1, 2])
def test_one_image_makes_a_report(
    predictions: Callable[..., pd.DataFrame],
    classes: Callable[..., list[ClassInfo]],
    answers: Callable[..., Predictions],
    made: ReportContent,
    html_of: Render,
    images: int,
) -> None:
    table = predictions(3, 1).head(images)
    results = Results.of(answers(table), classes(3), np.array([1, 2, 0]), np.zeros(3), PICTURES, resamplings=50)
    html = html_of(dataclasses.replace(made, results=results, gallery=[], prior_C=np.full(3, 1 / 3)))
    assert f"On {images} test image{'s' if images > 1 else ''} of 3 classes" in html
    assert "no test image" in html  # the classes without one


def test_without_address_space_for_the_renderer_a_chart_is_a_line(content: Callable[..., ReportContent]) -> None:
    """The renderer would end the process by a signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MB * 10**6 - 1, hard))
    try:
        figures = make_figures(content(3, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert figures
    assert not any(figure.svg for figure in figures)
