"""Questions, and the key under which an answer is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdpr.artifacts import ClassInfo
from mdpr.errors import printable
from mdpr.knowledge.questions import Prompts, Question, Rejected, load_prompts, make_questions, question_key
from mdpr.params import DIMENSIONS, LlmParams

DF = DIMENSIONS[-1]
PROMPTS = load_prompts()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


def classes(*names: str, disambiguation: str | None = None) -> list[ClassInfo]:
    return [
        ClassInfo(index=index, name=name, disambiguation=disambiguation, train_images=1, shot="few")
        for index, name in enumerate(names)
    ]


def ask_about(
    items: list[ClassInfo],
    rivals: list[int],
    llm: Mapping[str, Any] | None = None,
    prompts: Prompts = PROMPTS,
    rejected: Mapping[tuple[int, str], Rejected] | None = None,
) -> list[Question]:
    params = LlmParams.model_validate({"model": "m", **(llm or {})})
    places = rejected or [(item.index, dimension) for item in items for dimension in DIMENSIONS]
    return make_questions(items, rivals, prompts, params, places, rejected)


def changed(before: list[Question], after: list[Question]) -> set[tuple[int, str]]:
    """The places whose key is another one."""
    keys = {question.place: question.key for question in before}
    return {question.place for question in after if keys[question.place] != question.key}


@given(PARTS)
def test_a_key_does_not_depend_on_the_order_of_its_parts(parts: dict[str, Any]) -> None:
    assert question_key(parts) == question_key(dict(reversed(parts.items())))


@given(PARTS, PARTS)
def test_keys_are_equal_only_for_equal_parts(one: dict[str, Any], other: dict[str, Any]) -> None:
    def typed(value: Any) -> Any:  # Python takes True for 1; JSON does not
        if isinstance(value, dict):
            return {key: typed(item) for key, item in value.items()}
        return [typed(item) for item in value] if isinstance(value, list) else (type(value), value)

    assert (question_key(one) == question_key(other)) == (typed(one) == typed(other))


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_any_class_name_is_put_into_its_prompt_as_people_read_it(name: str, rival: str) -> None:
    questions = ask_about(classes(name, rival), [1, 0])
    assert all(printable(name) in question.user for question in questions[:5])
    assert f"Unlike a {printable(rival)}," in questions[4].user


def test_every_class_is_asked_about_in_every_dimension_under_keys_of_its_own() -> None:
    questions = ask_about(classes("missile", "missile"), [1, 0])
    assert [question.place for question in questions] == [(c, key) for c in (0, 1) for key in DIMENSIONS]
    assert len({question.key for question in questions}) == 10


@pytest.mark.parametrize(
    "llm",
    [
        {"model": "n"},
        {"vendor": "anthropic"},
        {"base_url": "http://other"},
        {"temperature": 0.3},
        {"seed": 1},
        {"max_tokens": 9},
        {"structured_output": "json_schema"},
    ],
    ids=lambda llm: next(iter(llm)),
)
def test_what_shapes_an_answer_changes_every_key(llm: dict[str, Any]) -> None:
    items = classes("cat", "dog")
    assert len(changed(ask_about(items, [1, 0]), ask_about(items, [1, 0], llm))) == 10


@pytest.mark.parametrize(
    "llm", [{"concurrency": 1}, {"timeout_s": 1}, {"max_retries": 0}, {"requests_per_minute": 6}, {"store": "x"}]
)
def test_what_only_says_how_it_is_fetched_changes_no_key(llm: dict[str, Any]) -> None:
    items = classes("cat", "dog")
    assert changed(ask_about(items, [1, 0]), ask_about(items, [1, 0], llm)) == set()


def test_another_rival_asks_only_for_the_contrast_again() -> None:
    items = classes("cat", "dog", "fox")
    assert changed(ask_about(items, [1, 0, 0]), ask_about(items, [2, 0, 0])) == {(0, DF)}


def test_a_disambiguation_goes_into_the_prompt_and_the_key() -> None:
    before = ask_about(classes("missile", "tank"), [1, 0])
    after = ask_about(classes("missile", "tank", disambiguation="a weapon"), [1, 0])
    assert len(changed(before, after)) == 10
    assert "missile (a weapon)" in after[0].user
    assert "tank (a weapon)" in after[4].user


def test_a_changed_prompt_asks_anew_only_its_dimension() -> None:
    ask = PROMPTS.dimensions["functionality"].model_copy(update={"ask": "What is a {class} good for?"})
    prompts = PROMPTS.model_copy(update={"dimensions": {**PROMPTS.dimensions, "functionality": ask}})
    items = classes("cat", "dog")
    assert changed(ask_about(items, [1, 0]), ask_about(items, [1, 0], prompts=prompts)) == {
        (0, "functionality"),
        (1, "functionality"),
    }


def test_repair_asks_only_for_what_was_rejected_and_says_why() -> None:
    items = classes("cat", "dog")
    rejected = {(1, "functionality"): Rejected("Barks {class}.", "2 words, fewer than 5")}
    (question,) = ask_about(items, [1, 0], rejected=rejected)
    assert question.place == (1, "functionality")
    assert "Barks {class}." in question.user
    assert "2 words, fewer than 5" in question.user
    assert changed(ask_about(items, [1, 0]), [question]) == {question.place}
