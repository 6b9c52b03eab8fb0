"""The knowledge bases in data/embedded: of exactly the label sets they are for, complete, and passed by the audit."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from mdpr.artifacts import Knowledge, read_json, read_knowledge
from mdpr.data.class_list import shipped_class_list
from mdpr.data.sources.emblems import build_world
from mdpr.knowledge.audit import alternatives_of, audit, too_many_tokens

BASES = ("fashion-mnist", "emblems", "cifar10", "cifar100", "places365", "imagenet")
# What the label sets themselves bring about: names inside names, and names in an order that no sentence keeps.
EXPECTED_WARNINGS = {"rival_in_name", "names_rival", "no_contrast"}
LIKELY_RIVALS = 3


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, project_root: Path) -> Knowledge:
    embedded = project_root / "data" / "embedded"
    if request.param == "fashion-mnist":
        content = read_json(embedded / "fashion-mnist" / "classes.json")
        names = [item["name"] for item in content["classes"]]
    elif request.param == "emblems":
        names = list(build_world().names)
    else:
        names = [item.name for item in shipped_class_list(request.param)]
    return read_knowledge(embedded / "knowledge" / f"{request.param}.json", names)


def test_the_audit_finds_no_errors(base: Knowledge) -> None:
    findings = [*audit(base, alternatives=True), *too_many_tokens(base, open_clip.tokenizer.SimpleTokenizer().encode)]
    assert [item for item in findings if item.level == "error"] == []
    if base.classes[0].name == build_world().names[0]:  # its classes share values, so their sentences differ by name
        findings = [item for item in findings if item.check != "near_duplicate"]
    assert {item.check for item in findings} <= EXPECTED_WARNINGS
    assert len({(item.class_index, item.check) for item in findings}) <= len(base.classes) / 10


def test_every_class_is_set_against_its_likeliest_rivals(base: Knowledge) -> None:
    names = {item.name for item in base.classes}
    for item in base.classes:
        rivals = [item.rival, *item.differential_alternatives]
        assert names.issuperset(rivals)
        assert item.name not in rivals
        assert len(set(rivals)) == len(rivals) >= LIKELY_RIVALS, item.name


def test_where_they_come_from_is_stated(base: Knowledge) -> None:
    assert {"author", "date", "license", "prompt_version"} <= base.provenance.keys()
    assert list(alternatives_of(base))
