"""The report in a real headless Chromium: from disk, without a network, by mouse and by keyboard."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.integration
EVIL = "<script>alert(1)</script>"
SYNTHETIC = Path(__file__).resolve().parents[1] / "unit" / "evaluation" / "conftest.py"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of 10 classes, of 1,000, and of ten with hostile names."""
    spec = importlib.util.spec_from_file_location("synthetic_evaluation", SYNTHETIC)
    assert spec is not None
    assert spec.loader is not None
    synthetic: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    folder = tmp_path_factory.mktemp("reports")
    contents = {
        "ten": synthetic.make_content(10, 30),
        "thousand": synthetic.make_content(1000, 2),
        "evil": synthetic.make_content(10, 10, name=lambda index: f"{EVIL} {index}"),
    }
    paths = {name: folder / f"{name}.html" for name in contents}
    for name, content in contents.items():
        paths[name].write_text(synthetic.make_html(content), encoding="utf-8")
    return paths


def visible_names(page: Page) -> list[str]:
    return page.locator("#classes tbody tr:not([hidden]) th").all_inner_texts()


@pytest.mark.parametrize("name", ["ten", "thousand", "evil"])
def test_it_opens_from_disk_and_every_image_has_a_text(page: Page, reports: dict[str, Path], name: str) -> None:
    page.goto(reports[name].as_uri())
    assert page.locator("h1").inner_text() == "mdpr: evaluation on the test set"
    for image in page.locator("img, [role=img]").all():
        assert (image.get_attribute("alt") or image.get_attribute("aria-label") or "").strip()
    assert page.evaluate("document.images.length") > 0
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_sorting_and_searching_by_mouse(page: Page, reports: dict[str, Path]) -> None:
    page.goto(reports["ten"].as_uri())
    names = visible_names(page)
    assert len(names) == 10
    head = page.locator("#classes th", has_text="Training images")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert visible_names(page) == names[::-1]  # class 0 has the most
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert visible_names(page) == names
    page.get_by_label("Search").fill("few")
    assert 0 < len(visible_names(page)) < 10
    assert page.get_by_role("status").inner_text() == f"{len(visible_names(page))} of 10 classes"
    page.get_by_label("Search").fill("no such class")
    assert visible_names(page) == []


def test_sorting_searching_and_zooming_by_keyboard(page: Page, reports: dict[str, Path]) -> None:
    page.goto(reports["thousand"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.get_by_label("Search").focus()
    page.keyboard.type("class 99")
    # class 99, class 990 to 999, and the class whose rival is class 99
    assert {"class 99", "class 990", "class 999"} <= set(visible_names(page))
    page.locator("#classes th", has_text="Index").get_by_role("button").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    indices = page.locator("#classes tbody tr:not([hidden]) td:first-child").all_inner_texts()
    assert [int(index) for index in indices] == sorted((int(index) for index in indices), reverse=True)
    worst = page.get_by_role("button", name="Worst block")
    assert worst.get_attribute("aria-pressed") == "false"
    worst.focus()
    page.keyboard.press("Space")
    assert worst.get_attribute("aria-pressed") == "true"
    shown = page.locator(".views .view:visible")
    assert shown.count() == 1
    assert "20 classes of the worst confusions, of 1,000" in shown.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(page: Page, reports: dict[str, Path], axe_faults: Any, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(reports["ten"].as_uri())
    assert axe_faults() == []


def test_light_and_dark_differ(page: Page, reports: dict[str, Path]) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(reports["ten"].as_uri())
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(set(colours)) == 2


@pytest.mark.parametrize("name", ["ten", "thousand", "evil"])
def test_a_phone_needs_no_sideways_scrolling(page: Page, reports: dict[str, Path], name: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(reports[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_it_works_in_a_sandboxed_frame(page: Page, reports: dict[str, Path]) -> None:
    source = reports["ten"].read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    outer = reports["ten"].with_name("frame.html")
    outer.write_text(
        f'<!doctype html><iframe sandbox="allow-scripts" width="1200" height="800" srcdoc="{source}"></iframe>',
        encoding="utf-8",
    )
    page.goto(outer.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("#classes th", has_text="Training images").get_by_role("button").click()
    assert frame.locator("#classes tbody th").first.inner_text() == "class 9"
    frame.get_by_label("Search").fill("class 3")
    assert frame.get_by_role("status").inner_text().endswith("of 10 classes")


def test_a_class_named_like_a_script_stays_text(page: Page, reports: dict[str, Path]) -> None:
    page.goto(reports["evil"].as_uri())
    assert page.evaluate("document.scripts.length") == 1
    assert page.locator("#classes tbody th").first.inner_text() == f"{EVIL} 0"
    assert any(EVIL in (title or "") for title in page.locator("svg title").all_text_contents())
    assert EVIL in page.locator("#gallery ~ ul").inner_text()
    assert EVIL in page.locator("section:has(#audit)").inner_text()
