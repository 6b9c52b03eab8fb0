"""Questions, the key under which an answer is kept, the store of answers, the budget, and the estimate of a run."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdpr.artifacts import ClassInfo
from mdpr.errors import KnowledgeError, printable
from mdpr.knowledge.questions import (
    Budget,
    Prices,
    Prompts,
    Question,
    Rejected,
    Usage,
    estimate,
    load_prompts,
    make_questions,
    open_store,
    plan,
    prompt_tokens,
    question_key,
)
from mdpr.params import DIMENSIONS, LlmParams

DF = DIMENSIONS[-1]
PROMPTS = load_prompts()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text(max_size=30).filter(str.strip)  # a class cannot have a blank name
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


@given(NAMES, NAMES)
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


QUESTION = Question("k", 0, "cat", "functionality", "s" * 100, "u" * 100)


def questions_about(*names: str) -> list[Question]:
    return ask_about(classes(*names), [0] * len(names))


def test_an_answer_is_found_under_its_key_from_another_connection(tmp_path: Path) -> None:
    questions = questions_about("cat", "dog")
    path = tmp_path / "folder" / "answers.sqlite"
    with open_store(path) as store, open_store(path) as other:
        store.add(questions[0], "A cat purrs when it is stroked.", "m", Usage(90, 10))
        store.add(questions[1], "A cat has slit pupils.", "m", Usage(90, 20))
        assert other.find(question.key for question in questions) == {
            questions[0].key: "A cat purrs when it is stroked.",
            questions[1].key: "A cat has slit pupils.",
        }
        assert other.mean_output_tokens("m") == 15
        assert other.mean_output_tokens("n") is None


def test_many_keys_are_found_at_once(tmp_path: Path) -> None:
    questions = questions_about(*(f"c{i}" for i in range(300)))
    with open_store(tmp_path / "a.sqlite") as store:
        for question in questions:
            store.add(question, question.key, "m", Usage())
        assert store.find(question.key for question in questions) == {q.key: q.key for q in questions}


def test_an_accepted_answer_is_never_overwritten(tmp_path: Path) -> None:
    question = questions_about("cat", "dog")[0]
    with open_store(tmp_path / "a.sqlite") as store:
        store.add(question, "The first.", "m", Usage())
        store.add(question, "The second.", "m", Usage())
        assert store.find([question.key]) == {question.key: "The first."}


def test_an_experiment_in_a_copy_of_the_project_finds_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    (copy / ".dvc").mkdir(parents=True)
    questions = questions_about("cat")
    with open_store(tmp_path / "data" / "answers.sqlite") as store:
        store.add(questions[0], "A cat.", "m", Usage())
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert plan(questions, LlmParams(model="m", store="data/answers.sqlite")).stored == 1


def test_a_file_that_is_no_store_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.write_text("this is no database, and it is longer than a header of one " * 20)
    with pytest.raises(KnowledgeError, match=r"a\.sqlite.*set describe\.llm\.store"), open_store(path):
        pass
    with pytest.raises(KnowledgeError, match=r"set describe\.llm\.store"), open_store(tmp_path):
        pass


def test_the_store_is_in_wal_mode(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.sqlite"):
        pass
    connection = sqlite3.connect(tmp_path / "a.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_budget_is_never_exceeded_and_what_was_not_spent_comes_back() -> None:
    prices = Prices(1.0, 10.0)
    budget = Budget(0.01, prices, max_tokens=300)
    most = budget.most_usd(QUESTION)
    taken = 0
    while budget.set_aside(QUESTION):
        taken += 1
    assert taken == int(0.01 / most)
    budget.settle(QUESTION, Usage())
    assert budget.set_aside(QUESTION)
    assert not budget.set_aside(QUESTION)


def test_no_budget_is_no_limit() -> None:
    budget = Budget(0.0, Prices(1e9, 1e9), max_tokens=300)
    assert all(budget.set_aside(QUESTION) for _ in range(100))


def test_an_estimate_counts_prompts_and_answers() -> None:
    usage = estimate([QUESTION] * 4, output_tokens=12.5)
    assert usage == Usage(4 * prompt_tokens(QUESTION), 50)
    assert Prices(2.0, 4.0).cost_usd(Usage(1_000_000, 500_000)) == 4.0
