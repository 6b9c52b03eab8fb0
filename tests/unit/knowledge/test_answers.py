"""The store of answers, the budget, and the estimate of a run."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mdpr.artifacts import ClassInfo
from mdpr.errors import KnowledgeError
from mdpr.knowledge.answers import Budget, Prices, Usage, estimate, open_store, plan, prompt_tokens
from mdpr.knowledge.questions import Question, load_prompts, make_questions
from mdpr.params import DIMENSIONS, LlmParams

QUESTION = Question("k", 0, "cat", "functionality", "s" * 100, "u" * 100)


def questions_about(*names: str) -> list[Question]:
    items = [ClassInfo(index=index, name=name, train_images=1, shot="few") for index, name in enumerate(names)]
    places = [(item.index, dimension) for item in items for dimension in DIMENSIONS]
    llm = LlmParams.model_validate({"model": "m"})
    return make_questions(items, [0] * len(items), load_prompts(), llm, places)


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
