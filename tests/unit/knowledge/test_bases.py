"""Knowledge bases: read and fitted to the rivals without filling a gap; cut into shards, and merged again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdpr.artifacts import ClassInfo, ClassKnowledge, Knowledge, read_knowledge, read_unfinished, who_wrote
from mdpr.errors import ConfigError, KnowledgeError
from mdpr.knowledge.audit import audit
from mdpr.knowledge.bases import fit_rivals, merge, new_base, shard_indices
from mdpr.params import DIMENSIONS, DescribeParams

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


def test_classes_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    content = base()
    content["classes"].reverse()
    knowledge = read_knowledge(write(tmp_path, content), NAMES)
    assert [(item.index, item.name, item.rival, item.rival_index) for item in knowledge.classes] == [
        (0, "shirt", "coat", 1),
        (1, "coat", "shirt", 0),
    ]
    assert knowledge.sentences_CV()[1][2] == "This sentence tells the functionality of a coat."


def test_a_new_base_has_every_class_and_waits_for_its_sentences(tmp_path: Path) -> None:
    items = [ClassInfo(index=index, name=name, train_images=1, shot="few") for index, name in enumerate(NAMES)]
    for rivals, named in (([1, 0], ["coat", "shirt"]), (None, [None, None])):
        path = tmp_path / "new.json"
        path.write_text(new_base(items, rivals).model_dump_json())
        assert [item.rival for item in read_unfinished(path, NAMES).classes] == named
        with pytest.raises(KnowledgeError, match=r"class 0 \(shirt\) has no sentence for general_appearance"):
            read_knowledge(path, NAMES)


def test_a_new_base_keeps_the_sentences_of_an_earlier_one_by_name(tmp_path: Path) -> None:
    earlier = read_knowledge(write(tmp_path, base()), NAMES)
    names = ["bag", "coat", "shirt", "sock", "sock"]
    items = [ClassInfo(index=index, name=name, train_images=1, shot="few") for index, name in enumerate(names)]
    made = new_base(items, [1, 0, 0, 0, 0], earlier)
    assert [(item.index, item.name, item.rival, item.rival_index) for item in made.classes] == [
        (0, "bag", "coat", 1),
        (1, "coat", "shirt", 2),
        (2, "shirt", "coat", 1),
        (3, "sock", "bag", 0),
        (4, "sock", "bag", 0),
    ]
    assert made.classes[1].sentences == earlier.classes[1].sentences
    assert made.classes[1].differential_alternatives == earlier.classes[1].differential_alternatives
    assert not any(text for index in (0, 3, 4) for text in made.classes[index].sentences.values())
    assert made.provenance == earlier.provenance
    twice = [item.model_copy(update={"name": "coat"}) for item in items]
    assert not any(text for item in new_base(twice, None, earlier).classes for text in item.sentences.values())


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
        (_shorten, r"describes 1 classes, the data has 2 \(without coat\)"),
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


LABELS = ["coat", "bag", "coat", "sandal", "shirt", "dress", "boot"]  # names may repeat


def classes() -> list[ClassInfo]:
    return [ClassInfo(index=i, name=name, train_images=1, shot="few") for i, name in enumerate(LABELS)]


def shard_of(indices: Sequence[int], **provenance: str) -> Knowledge:
    return Knowledge(
        provenance={"provider": "llm", "model": "m", **provenance},
        classes=tuple(
            ClassKnowledge(index=i, name=LABELS[i], sentences={key: f"{key} of {i}" for key in DIMENSIONS})
            for i in indices
        ),
    )


def shards(count: int) -> dict[str, Knowledge]:
    return {f"shard {n}": shard_of(shard_indices(f"{n}/{count}", len(LABELS))) for n in range(1, count + 1)}


@given(st.integers(1, 2000), st.data())
def test_every_class_is_in_exactly_one_shard_and_sizes_are_even(count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, min(count, 64)))
    parts = [shard_indices(f"{place}/{number}", count) for place in range(1, number + 1)]
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_without_a_shard_there_are_all_classes() -> None:
    assert shard_indices("", 5) == range(5)


@pytest.mark.parametrize("count", [1, 2, 3, len(LABELS)])
def test_merged_shards_are_the_whole_whatever_their_order(count: int) -> None:
    whole = shard_of(range(len(LABELS)))
    parts = shards(count)
    assert merge(parts, classes()) == whole
    assert merge(dict(reversed(parts.items())), classes()) == whole


FAULTS: dict[str, tuple[Callable[[], dict[str, Knowledge]], str]] = {
    "overlap": (
        lambda: shards(2) | {"third": shard_of([2])},
        r"class 2 \(coat\) is in shard 1 and in third: give each once",
    ),
    "missing": (
        lambda: {"a": shard_of([0, 1, 2]), "b": shard_of([4, 5, 6])},
        r"class 3 \(sandal\) is in no shard",
    ),
    "other settings": (
        lambda: shards(2) | {"shard 2": shard_of([3, 4, 5, 6], model="other")},
        "shard 2 has model = 'other', shard 1 has 'm'",
    ),
    "settings that one lacks": (
        lambda: shards(2) | {"shard 2": shard_of([3, 4, 5, 6], base_url="http://x")},
        "shard 2 has base_url = 'http://x', shard 1 has None",
    ),
    "another name": (
        lambda: {"a": shard_of(range(7)).model_copy(update={"classes": (renamed(),)})},
        "a: class 0 is 'cape', the data has 'coat'",
    ),
    "none": (dict, "no shard to merge"),
}


def renamed() -> ClassKnowledge:
    return shard_of([0]).classes[0].model_copy(update={"name": "cape"})


@pytest.mark.parametrize("fault", FAULTS)
def test_shards_that_do_not_fit_are_one_line(fault: str) -> None:
    make, message = FAULTS[fault]
    with pytest.raises(KnowledgeError, match=message) as raised:
        merge(make(), classes())
    assert "\n" not in str(raised.value)


def test_a_class_beyond_the_label_set_is_named() -> None:
    with pytest.raises(KnowledgeError, match="class 6 is 'boot', the data has only 6 classes"):
        merge({"a": shard_of(range(7))}, classes()[:6])


def test_more_shards_than_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="1/8: there are only 7 classes"):
        shard_indices("1/8", 7)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", " 1/2"])
def test_what_is_no_shard_is_no_setting(shard: str) -> None:
    with pytest.raises(ValueError, match="shard"):
        DescribeParams.model_validate({"shard": shard})
