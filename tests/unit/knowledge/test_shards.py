"""Shares of the classes: each class in exactly one; one knowledge base of them again, or a line that says why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdpr.artifacts import ClassInfo, ClassKnowledge, Knowledge
from mdpr.errors import ConfigError, KnowledgeError
from mdpr.knowledge.shards import merge, shard_indices
from mdpr.params import DIMENSIONS, DescribeParams

NAMES = ["coat", "bag", "coat", "sandal", "shirt", "dress", "boot"]  # names may repeat


def classes() -> list[ClassInfo]:
    return [ClassInfo(index=i, name=name, train_images=1, shot="few") for i, name in enumerate(NAMES)]


def knowledge(indices: Sequence[int], **provenance: str) -> Knowledge:
    return Knowledge(
        provenance={"provider": "llm", "model": "m", **provenance},
        classes=tuple(
            ClassKnowledge(index=i, name=NAMES[i], sentences={key: f"{key} of {i}" for key in DIMENSIONS})
            for i in indices
        ),
    )


def shards(count: int) -> dict[str, Knowledge]:
    return {f"shard {n}": knowledge(shard_indices(f"{n}/{count}", len(NAMES))) for n in range(1, count + 1)}


@given(st.integers(1, 2000), st.data())
def test_every_class_is_in_exactly_one_shard_and_sizes_are_even(count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, min(count, 64)))
    parts = [shard_indices(f"{place}/{number}", count) for place in range(1, number + 1)]
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_without_a_shard_there_are_all_classes() -> None:
    assert shard_indices("", 5) == range(5)


@pytest.mark.parametrize("count", [1, 2, 3, len(NAMES)])
def test_merged_shards_are_the_whole_whatever_their_order(count: int) -> None:
    whole = knowledge(range(len(NAMES)))
    parts = shards(count)
    assert merge(parts, classes()) == whole
    assert merge(dict(reversed(parts.items())), classes()) == whole


FAULTS: dict[str, tuple[Callable[[], dict[str, Knowledge]], str]] = {
    "overlap": (
        lambda: shards(2) | {"third": knowledge([2])},
        r"class 2 \(coat\) is in shard 1 and in third: give each once",
    ),
    "missing": (
        lambda: {"a": knowledge([0, 1, 2]), "b": knowledge([4, 5, 6])},
        r"class 3 \(sandal\) is in no shard",
    ),
    "other settings": (
        lambda: shards(2) | {"shard 2": knowledge([3, 4, 5, 6], model="other")},
        "shard 2 has model = 'other', shard 1 has 'm'",
    ),
    "settings that one lacks": (
        lambda: shards(2) | {"shard 2": knowledge([3, 4, 5, 6], base_url="http://x")},
        "shard 2 has base_url = 'http://x', shard 1 has None",
    ),
    "another name": (
        lambda: {"a": knowledge(range(7)).model_copy(update={"classes": (renamed(),)})},
        "a: class 0 is 'cape', the data has 'coat'",
    ),
    "none": (dict, "no shard to merge"),
}


def renamed() -> ClassKnowledge:
    return knowledge([0]).classes[0].model_copy(update={"name": "cape"})


@pytest.mark.parametrize("fault", FAULTS)
def test_shards_that_do_not_fit_are_one_line(fault: str) -> None:
    make, message = FAULTS[fault]
    with pytest.raises(KnowledgeError, match=message) as raised:
        merge(make(), classes())
    assert "\n" not in str(raised.value)


def test_a_class_beyond_the_label_set_is_named() -> None:
    with pytest.raises(KnowledgeError, match="class 6 is 'boot', the data has only 6 classes"):
        merge({"a": knowledge(range(7))}, classes()[:6])


def test_more_shards_than_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="1/8: there are only 7 classes"):
        shard_indices("1/8", 7)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", " 1/2"])
def test_what_is_no_shard_is_no_setting(shard: str) -> None:
    with pytest.raises(ValueError, match="shard"):
        DescribeParams.model_validate({"shard": shard})
