"""The gate. Shapes: N test images, C classes."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mdpr.bootstrap import bootstrap_means
from mdpr.errors import ConfigError
from mdpr.registry.gate import Candidate, Policy, compare, read_policy, should_promote

POLICY = Policy.model_validate(
    {
        "confidence": 0.95,
        "bootstrap_samples": 1000,
        "seed": 0,
        "first_model": {"tolerance_points": {"all": 2.0, "few": 5.0}},
        "later_models": {"tolerance_points": {"all": 0.0, "few": 2.0}},
    }
)
CLASSES, IMAGES_PER_CLASS = 6, 200
GROUPS = {"all": list(range(CLASSES)), "many": [0, 1], "medium": [2, 3], "few": [4, 5]}
LABEL_N = np.repeat(np.arange(CLASSES), IMAGES_PER_CLASS)


def answers(right_N: np.ndarray, label_N: np.ndarray = LABEL_N) -> np.ndarray:
    return np.where(right_N, label_N, (label_N + 1) % CLASSES)


def candidate(fused_right_N: np.ndarray, zero_shot_right_N: np.ndarray | None = None) -> Candidate:
    """A model that answers these images right; its zero-shot branch is right about nothing unless given."""
    zero_shot_right_N = np.zeros(len(LABEL_N), bool) if zero_shot_right_N is None else zero_shot_right_N
    table = pd.DataFrame(
        {
            "index": np.arange(len(LABEL_N)),
            "label": LABEL_N,
            "zero_shot_top1": answers(zero_shot_right_N),
            "base_top1": answers(np.zeros(len(LABEL_N), bool)),
            "fused_top1": answers(fused_right_N),
        }
    )
    return Candidate(table, label_set="l", test_set="t")


def right_with(accuracy: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(len(LABEL_N)) < accuracy


def test_a_first_model_is_judged_against_zero_shot() -> None:
    good = should_promote(candidate(right_with(0.9, 0), right_with(0.7, 1)), None, GROUPS, POLICY)
    assert good.promote
    assert "zero-shot" in good.reason
    assert [check.name.partition(",")[0] for check in good.checks] == ["all", "few"]
    assert [check.threshold for check in good.checks] == [-2.0, -5.0]
    bad = should_promote(candidate(right_with(0.6, 0), right_with(0.7, 1)), None, GROUPS, POLICY)
    assert not bad.promote
    assert bad.reason.startswith("not good enough against zero-shot")


def test_better_replaces_worse_and_not_the_other_way_round() -> None:
    strong, weak = candidate(right_with(0.9, 0)), candidate(right_with(0.8, 1))
    assert should_promote(strong, weak, GROUPS, POLICY).promote
    assert not should_promote(weak, strong, GROUPS, POLICY).promote


def test_the_same_answers_do_not_replace_the_champion() -> None:
    right_N = right_with(0.8, 0)
    decision = should_promote(candidate(right_N), candidate(right_N), GROUPS, POLICY)
    assert not decision.promote
    assert [check.value for check in decision.checks] == [0.0, 0.0]


def test_few_shot_classes_may_not_pay_for_the_rest() -> None:
    champion_N = right_with(0.8, 0)
    challenger_N = champion_N | (LABEL_N < 4)  # everything of many and medium right
    challenger_N[np.flatnonzero((LABEL_N >= 4) & champion_N)[::5]] = False
    decision = should_promote(candidate(challenger_N), candidate(champion_N), GROUPS, POLICY)
    assert {check.name.partition(",")[0]: check.passed for check in decision.checks} == {
        "all": True,
        "few": False,
    }
    assert not decision.promote


def test_without_few_shot_classes_the_rest_decides() -> None:
    groups = {"all": GROUPS["all"], "many": GROUPS["all"]}
    decision = should_promote(candidate(right_with(0.9, 0)), candidate(right_with(0.8, 1)), groups, POLICY)
    assert decision.promote
    assert "few: no such class" in decision.reason


def test_models_of_different_tests_are_not_compared() -> None:
    champion = candidate(right_with(0.5, 0))
    strong = candidate(right_with(0.9, 1))
    relabelled = strong.predictions.assign(label=(LABEL_N + 1) % CLASSES)
    for other, reason in [
        (Candidate(strong.predictions, "other", "t"), "other classes"),
        (Candidate(strong.predictions, "l", "other"), "other test images"),
        (Candidate(relabelled, "l", "t"), "other test images"),
        (Candidate(strong.predictions.iloc[:-1], "l", "t"), "other test images"),
    ]:
        decision = should_promote(other, champion, GROUPS, POLICY)
        assert not decision.promote
        assert reason in decision.reason


def test_with_routing_off_the_base_branch_is_the_answer() -> None:
    strong = candidate(right_with(0.9, 0))
    base_alone = strong.predictions.drop(columns="fused_top1").assign(base_top1=strong.predictions["fused_top1"])
    champion = candidate(right_with(0.8, 1))
    decision = should_promote(Candidate(base_alone, "l", "t"), champion, GROUPS, POLICY)
    assert decision == should_promote(strong, champion, GROUPS, POLICY)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 1), st.floats(0.01, 1), st.integers(0, 10_000))
def test_never_promotes_what_is_worse_wherever_it_differs(accuracy: float, lost: float, seed: int) -> None:
    champion_N = right_with(accuracy, seed)
    challenger_N = champion_N & ~right_with(lost, seed + 1)
    decision = should_promote(candidate(challenger_N), candidate(champion_N), GROUPS, POLICY)
    assert not decision.promote


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 1), st.floats(0.5, 1), st.integers(0, 10_000))
def test_the_order_of_images_does_not_matter(first: float, second: float, seed: int) -> None:
    challenger, champion = candidate(right_with(first, seed)), candidate(right_with(second, seed + 1))
    shuffled = Candidate(challenger.predictions.sample(frac=1, random_state=seed), "l", "t")
    assert should_promote(shuffled, champion, GROUPS, POLICY) == should_promote(challenger, champion, GROUPS, POLICY)


def test_equal_models_are_rarely_promoted() -> None:
    trials = 300
    promoted = sum(
        should_promote(
            candidate(right_with(0.8, seed)), candidate(right_with(0.8, 10_000 + seed)), GROUPS, POLICY
        ).promote
        for seed in range(trials)
    )
    # alpha = 0.05; 0.05 + 3 standard errors of 300 trials
    assert promoted / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_drawing_counts_is_drawing_images() -> None:
    rng = np.random.default_rng(0)
    label_N = np.repeat([0, 1], [60, 200])
    won_N = rng.random(260) < 0.3
    count_CK = np.array([[won_N[label_N == c].sum(), (~won_N[label_N == c]).sum()] for c in (0, 1)])
    counted_S = bootstrap_means(count_CK, (1, 0), {"all": [0, 1]}, resamplings=4000, seed=0)["all"]
    drawn_S = np.mean(
        [won_N[rng.choice(np.flatnonzero(label_N == c), (4000, (label_N == c).sum()))].mean(axis=1) for c in (0, 1)],
        axis=0,
    )
    assert counted_S.mean() == pytest.approx(drawn_S.mean(), abs=0.002)
    assert np.quantile(counted_S, [0.05, 0.95]) == pytest.approx(np.quantile(drawn_S, [0.05, 0.95]), abs=0.006)


def test_memory_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    right_N, other_N = right_with(0.8, 0), right_with(0.7, 1)
    whole = compare(right_N, other_N, LABEL_N, GROUPS, POLICY)
    monkeypatch.setattr("mdpr.bootstrap.DRAWN_AT_ONCE", 50)
    assert compare(right_N, other_N, LABEL_N, GROUPS, POLICY) == whole
    assert whole["all"][0] == pytest.approx(100 * (right_N.mean() - other_N.mean()))


def test_ten_thousand_images_take_no_time() -> None:
    policy = POLICY.model_copy(update={"bootstrap_samples": 2000})
    rng = np.random.default_rng(0)
    label_N = np.repeat(np.arange(1000), 10)
    started_s = time.perf_counter()
    compare(rng.random(10_000) < 0.8, rng.random(10_000) < 0.8, label_N, {"all": list(range(1000))}, policy)
    assert time.perf_counter() - started_s < 2


def test_the_shipped_policy_is_valid() -> None:
    policy = read_policy(Path(__file__).parents[3] / "mlflow" / "promotion.yaml")
    assert set(policy.later_models.tolerance_points) == {"all", "few"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidense": 0.9}, "confidense: Extra inputs"),
        ({"confidence": 95}, "confidence: Input should be less than 1"),
        ({"first_model": {"tolerance_points": {"few": 1}}}, "first_model: .*must name the group all"),
        ({"later_models": {"tolerance_points": {"all": 1, "tail": 1}}}, "later_models.tolerance_points.tail"),
        ({"seed": None}, "seed: "),
    ],
)
def test_a_policy_with_a_fault_names_it(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "promotion.yaml"
    path.write_text(yaml.safe_dump(POLICY.model_dump() | change))
    with pytest.raises(ConfigError, match=message) as caught:
        read_policy(path)
    assert "\n" not in str(caught.value)


def test_a_missing_key_or_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "promotion.yaml"
    with pytest.raises(ConfigError, match=r"promotion\.yaml does not exist"):
        read_policy(path)
    path.write_text(yaml.safe_dump({key: value for key, value in POLICY.model_dump().items() if key != "seed"}))
    with pytest.raises(ConfigError, match="seed: Field required"):
        read_policy(path)
