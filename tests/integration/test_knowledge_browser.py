"""The page of a knowledge base in a real headless Chromium, from disk, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mdpr.artifacts import ClassKnowledge, Knowledge, parse_knowledge
from mdpr.knowledge.audit import Finding
from mdpr.knowledge.write import render_knowledge
from mdpr.params import DIMENSIONS

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.integration
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def pages(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of the shipped 10 and 1,000 classes, two findings each, and of a class with hostile names and sentences."""
    folder = tmp_path_factory.mktemp("pages")
    shipped = project_root / "data" / "embedded" / "knowledge"
    evil = ClassKnowledge(index=0, name=EVIL, rival=EVIL, sentences=dict.fromkeys(DIMENSIONS, EVIL + "x" * 500))
    bases = {
        "ten": parse_knowledge(shipped / "cifar10.json"),
        "thousand": parse_knowledge(shipped / "imagenet.json"),
        "evil": Knowledge(provenance={"author": EVIL}, classes=(evil,)),
    }
    for name, knowledge in bases.items():
        first, last = knowledge.classes[0], knowledge.classes[-1]
        findings = [
            Finding("error", "markup", first.index, first.name, DIMENSIONS[0], "has markup in it"),
            Finding("warning", "too_short", last.index, last.name, DIMENSIONS[1], "says too little"),
        ]
        (folder / f"{name}.html").write_text(render_knowledge(knowledge, findings), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in bases}


def visible_classes(page: Page) -> list[str]:
    return page.locator("#classes > li:visible h3").all_inner_texts()


def test_searching_and_flagged_classes_alone(page: Page, pages: dict[str, Path]) -> None:
    page.goto(pages["ten"].as_uri())
    assert len(visible_classes(page)) == 10
    page.get_by_label("Search").fill("FROG croaks")
    assert ["frog" in name for name in visible_classes(page)] == [True]
    assert page.get_by_role("status").inner_text() == "1 of 10 classes"
    page.get_by_label("Search").fill("")
    page.get_by_label("only classes with findings").check()
    assert [name[:1] for name in visible_classes(page)] == ["0", "9"]
    page.get_by_label("Search").fill("says too little")
    assert [name[:1] for name in visible_classes(page)] == ["9"]


def test_contrasts_with_other_rivals_open_by_keyboard(page: Page, pages: dict[str, Path]) -> None:
    page.goto(pages["thousand"].as_uri())
    page.get_by_label("Search").focus()
    page.keyboard.type("sundial")
    page.locator("#classes > li:visible summary").first.focus()
    contrasts = page.locator("#classes > li:visible details li")
    assert not contrasts.first.is_visible()
    page.keyboard.press("Enter")
    assert contrasts.first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(page: Page, pages: dict[str, Path], axe_faults: Any, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(pages["ten"].as_uri())
    assert axe_faults() == []


@pytest.mark.parametrize("name", ["ten", "thousand", "evil"])
def test_a_phone_needs_no_sideways_scrolling(page: Page, pages: dict[str, Path], name: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(pages[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_sentence_like_a_script_stays_text(page: Page, pages: dict[str, Path]) -> None:
    page.goto(pages["evil"].as_uri())
    assert page.evaluate("document.scripts.length") == 1
    assert page.locator("#classes dd").first.inner_text().startswith(EVIL)
