"""The report is one safe, self-contained file, at any number of classes."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from mdpr.evaluation.metrics import points
from mdpr.evaluation.report import ReportContent, render_report

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
def html(made: ReportContent) -> str:
    return render_report(made)


@pytest.mark.parametrize(("classes", "images"), [(10, 50), (1000, 4)])
def test_report_stays_small_and_quick(content: Callable[..., ReportContent], classes: int, images: int) -> None:
    made = content(classes, images, gallery_images=24)
    started = time.monotonic()
    html = render_report(made)
    size_mb = len(html.encode()) / 1e6
    print(f"{classes} classes: {size_mb:.2f} MB in {time.monotonic() - started:.1f} s")
    assert size_mb < 5
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


def test_a_class_name_of_html_stays_text(content: Callable[..., ReportContent]) -> None:
    html = render_report(content(10, 20, name=lambda index: f"{EVIL} {index}"))
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
    assert len(alternatives) == html.count("<figure>") == 6
    assert all(text and re.search(r"\d", text) for text in alternatives)
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")


def test_ids_are_unique_on_the_page(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_without_routing_and_gallery_their_parts_are_gone(content: Callable[..., ReportContent], html: str) -> None:
    parts = ("Which knowledge was consulted", "Fused (MDPR)", "Test images of the tail", "over base")
    assert all(part in html for part in parts)
    plain = render_report(content(10, 20, routing=False, gallery_images=0))
    assert not any(part in plain for part in parts)
    assert "over zero-shot" in plain
