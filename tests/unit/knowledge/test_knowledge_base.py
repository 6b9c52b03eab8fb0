"""Reading, fitting and auditing a knowledge base: gaps are errors, faults are found, nothing is filled in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mdpr.artifacts import ClassKnowledge, Knowledge, read_knowledge, who_wrote
from mdpr.errors import KnowledgeError
from mdpr.knowledge.audit import audit
from mdpr.knowledge.curated import fit_rivals
from mdpr.params import DIMENSIONS

NAMES = ["shirt", "coat"]


def base() -> dict[str, Any]:
    return {
        "format": "mdpr-knowledge/1",
        "provenance": {"provider": "curated"},
        "dimensions": list(DIMENSIONS),
        "classes": [
            {
                "index": index,
                "name": name,
                "rival": NAMES[1 - index],
                "sentences": {key: f"This sentence tells the {key} of a {name}." for key in DIMENSIONS},
                "differential_alternatives": {"bag": f"Unlike a bag, a {name} has two sleeves."},
            }
            for index, name in enumerate(NAMES)
        ],
    }


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "knowledge.json"
    path.write_text(json.dumps(content))
    return path


def test_a_complete_base_is_read(tmp_path: Path) -> None:
    knowledge = read_knowledge(write(tmp_path, base()), NAMES)
    assert knowledge.sentences_CV()[1][2] == "This sentence tells the functionality of a coat."


def _drop(content: dict[str, Any]) -> None:
    del content["classes"][1]["sentences"]["functionality"]


def _blank(content: dict[str, Any]) -> None:
    content["classes"][0]["sentences"]["general_appearance"] = "  "


def _rename(content: dict[str, Any]) -> None:
    content["classes"][0]["name"] = "blouse"


def _shorten(content: dict[str, Any]) -> None:
    del content["classes"][1]


def _reorder(content: dict[str, Any]) -> None:
    content["dimensions"].reverse()


def _unknown(content: dict[str, Any]) -> None:
    content["classes"][0]["sentences"]["smell"] = "It smells of cotton and of soap."


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop, r"class 1 \(coat\) has no sentence for functionality"),
        (_blank, r"class 0 \(shirt\) has no sentence for general_appearance"),
        (_rename, r"class 0 is 'blouse' \(index 0\), the data has 'shirt'"),
        (_shorten, r"describes 1 classes, the data has 2"),
        (_reorder, r"dimensions must be general_appearance, "),
        (_unknown, r"unknown dimension smell"),
    ],
)
def test_gaps_and_strangers_are_errors_that_name_them(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = base()
    spoil(content)
    with pytest.raises(KnowledgeError, match=message):
        read_knowledge(write(tmp_path, content), NAMES)


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"nothing\.json is missing"):
        read_knowledge(tmp_path / "nothing.json", NAMES)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(KnowledgeError, match="is not valid JSON"):
        read_knowledge(tmp_path / "bad.json", NAMES)


def test_the_differential_sentence_follows_the_rival_that_was_found() -> None:
    fitted = fit_rivals(Knowledge.model_validate(base()), ["bag", "shirt"])
    assert fitted.classes[0].rival == "bag"
    assert fitted.classes[0].sentences["differential_features"] == "Unlike a bag, a shirt has two sleeves."
    assert fitted.classes[1] == Knowledge.model_validate(base()).classes[1]


def test_without_a_sentence_for_the_rival_the_old_one_stays_and_the_audit_says_so() -> None:
    knowledge = Knowledge.model_validate(base())
    fitted = fit_rivals(knowledge, ["trouser", "shirt"])
    assert fitted == knowledge
    (finding,) = (item for item in audit(fitted, ["trouser", "shirt"]) if item.check == "other_rival")
    assert (finding.level, finding.check, finding.class_name) == ("warning", "other_rival", "shirt")


def test_who_wrote_the_sentences_is_one_line_and_tells_the_completed_ones_apart() -> None:
    classes = tuple(
        ClassKnowledge(index=index, name=name, sentences=dict.fromkeys(DIMENSIONS, "x"), completed=completed)
        for index, (name, completed) in enumerate([("lamp", ()), ("candle", DIMENSIONS[-1:])])
    )
    hand = {"provider": "curated", "author": "somebody"}
    assert who_wrote(Knowledge(provenance=hand, classes=classes)) == "provider curated, author somebody"
    asked = {"provider": "completed", "model": "m", "base_url": "", "prompt_versions": {"functionality": 2}}
    assert who_wrote(Knowledge(provenance={**asked, "base": hand}, classes=classes)) == (
        "1 of 10: provider completed, model m; the others: provider curated, author somebody"
    )
