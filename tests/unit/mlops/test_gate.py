"""The gate. Shapes: N test images, C classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mdpr.errors import ConfigError
from mdpr.evaluation.uncertainty import drawn_counts
from mdpr.mlops.gate import Candidate, Comparison, Policy, compare, median_bound, read_policy, should_promote

POLICY = Policy.model_validate(
    {
        "required_groups": ["all"],
        "confidence": 0.95,
        "bootstrap_samples": 1000,
        "seed": 0,
        "first_model": {
            "floor_percent": {"all": 60, "few": 50, "worst_quartile": 30},
            "opponents": ["zero_shot"],
            "margin_points": {"all": -2.0, "few": -5.0},
            "max_ece_percent": 20,
            "max_latency_ms": 100,
        },
        "later_models": {
            "margin_points": {"all": 0.0, "few": -2.0, "worst_quartile": -5.0},
            "tolerance_points": {"many": 2.0, "few": 1.0},
            "with_new_classes": {"margin_points": {"all": -5.0}, "floor_percent": 20.0, "tolerance_points": 5.0},
            "max_ece_increase_points": 5,
            "max_latency_ratio": 1.5,
        },
    }
)
CLASSES, IMAGES_PER_CLASS = 6, 200
NAMES = [f"class {index}" for index in range(CLASSES)]
GROUPS = {"all": list(range(CLASSES)), "many": [0, 1], "medium": [2, 3], "few": [4, 5]}
LABEL_N = np.repeat(np.arange(CLASSES), IMAGES_PER_CLASS)


def answers(right_N: np.ndarray, label_N: np.ndarray = LABEL_N) -> np.ndarray:
    return np.where(right_N, label_N, (label_N + 1) % CLASSES)


def candidate(fused_right_N: np.ndarray, zero_shot_right_N: np.ndarray | None = None, **rest: Any) -> Candidate:
    """A model that answers these images right; its zero-shot branch is right about nothing unless given."""
    zero_shot_right_N = np.zeros(len(LABEL_N), bool) if zero_shot_right_N is None else zero_shot_right_N
    table = pd.DataFrame(
        {
            "index": np.arange(len(LABEL_N)),
            "label": LABEL_N,
            "image": 7 * np.arange(len(LABEL_N)),
            "zero_shot_top1": answers(zero_shot_right_N),
            "base_top1": answers(np.zeros(len(LABEL_N), bool)),
            "base_probability": 0.0,
            "fused_top1": answers(fused_right_N),
            "fused_probability": calibrated(fused_right_N, rest.pop("ece", 0.05)),
        }
    )
    return Candidate(**{"predictions": table, "classes": NAMES, "seen": np.empty(0, np.int64), **rest})


def noisy_ms(median_ms: float, seed: int = 0) -> np.ndarray:
    """100 requests; one in ten waits for something else."""
    random = np.random.default_rng(seed)
    ms_R: np.ndarray = median_ms * random.lognormal(0.0, 0.2, 100) * np.where(random.random(100) < 0.1, 10.0, 1.0)
    return ms_R


def calibrated(right_N: np.ndarray, ece: float) -> np.ndarray:
    """One probability for all images, so far from the share of right answers."""
    accuracy = right_N.mean()
    return np.full(len(right_N), accuracy - ece if accuracy > ece else accuracy + ece)


def right_with(accuracy: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(len(LABEL_N)) < accuracy


def failed(challenger: Candidate, champion: Candidate | None, policy: Policy = POLICY) -> set[str]:
    """The names of the checks that did not pass."""
    return {check.name for check in should_promote(challenger, champion, GROUPS, policy).checks if not check.passed}


def compared(
    right_N: np.ndarray, other_N: np.ndarray, label_N: np.ndarray = LABEL_N, samples: int = 1000
) -> Comparison:
    groups = {"all": list(range(int(label_N.max()) + 1))}
    return compare(right_N, other_N, label_N, groups, POLICY.model_copy(update={"bootstrap_samples": samples}))


def test_a_first_model_has_floors_and_must_not_lose_to_zero_shot() -> None:
    good = should_promote(candidate(right_with(0.9, 0), right_with(0.7, 1)), None, GROUPS, POLICY)
    assert good.promote
    assert "zero-shot" in good.reason
    assert good.reason.endswith(
        f"{len(good.checks)} of {len(good.checks)} checks passed"
    )  # their figures are in checks
    assert [check.name.partition(",")[0] for check in good.checks[:5]] == ["all", "few", "worst_quartile", "all", "few"]
    floors = {"all, percent, lower bound", "few, percent, lower bound"}
    assert floors <= failed(candidate(right_with(0.45, 0)), None)
    assert "worst_quartile, percent, lower bound" in failed(candidate(right_with(0.9, 0) & (LABEL_N > 1)), None)
    bad = should_promote(candidate(right_with(0.7, 0), right_with(0.8, 1)), None, GROUPS, POLICY)
    assert not bad.promote
    assert bad.reason.startswith("not good enough against zero-shot")
    assert {check.name for check in bad.checks if not check.passed} == {
        "all, points against zero-shot, lower bound",
        "few, points against zero-shot, lower bound",
    }


def test_a_missed_floor_is_no_comparison_and_a_remark_is_no_failure() -> None:
    groups = {"all": GROUPS["all"], "many": GROUPS["all"]}
    decision = should_promote(candidate(right_with(0.45, 0), right_with(0.2, 1)), None, groups, POLICY)
    assert not decision.promote
    assert "zero-shot" not in decision.reason
    failed, _, notes = decision.reason.partition("failed: ")[2].partition("not judged: ")
    assert "all, percent, lower bound" in failed
    assert "the floor is 60.00" in failed
    assert "+" not in failed
    assert "few: no such class" in notes
    assert "few" not in failed


def test_an_opponent_that_probe_left_out_is_not_judged() -> None:
    first = POLICY.first_model.model_copy(update={"opponents": ("zero_shot", "logistic")})
    policy = POLICY.model_copy(update={"first_model": first})
    decision = should_promote(candidate(right_with(0.9, 0)), None, GROUPS, policy)
    assert decision.promote
    assert "logistic regression: not measured, since probe left it out" in decision.reason.partition("not judged: ")[2]


def test_better_replaces_worse_and_not_the_other_way_round() -> None:
    strong, weak = candidate(right_with(0.9, 0)), candidate(right_with(0.8, 1))
    assert should_promote(strong, weak, GROUPS, POLICY).promote
    assert not should_promote(weak, strong, GROUPS, POLICY).promote


def test_the_same_answers_do_not_replace_the_champion() -> None:
    right_N = right_with(0.8, 0)
    decision = should_promote(candidate(right_N), candidate(right_N), GROUPS, POLICY)
    assert not decision.promote
    checks = [check for check in decision.checks if "against" in check.name]
    assert [check.estimate for check in checks] == [0.0] * 5
    assert all(-1 < check.value <= 0 for check in checks)
    assert failed(candidate(right_N), candidate(right_N)) == {"all, points against the champion, lower bound"}


def test_few_shot_classes_may_not_pay_for_the_rest() -> None:
    champion_N = right_with(0.8, 0)
    challenger_N = champion_N | (LABEL_N < 4)  # everything of many and medium right
    challenger_N[np.flatnonzero((LABEL_N >= 4) & champion_N)[::5]] = False
    assert failed(candidate(challenger_N), candidate(champion_N)) == {
        "few, points against the champion, lower bound",
        "few, points against the champion",
        "worst_quartile, points against the champion, lower bound",
    }


def test_one_class_that_collapses_is_seen_in_the_worst_quartile() -> None:
    champion_N = right_with(0.6, 0)
    challenger_N = champion_N | ((LABEL_N != 2) & right_with(0.9, 1))
    challenger_N[np.flatnonzero((LABEL_N == 2) & champion_N)[::3]] = False
    assert failed(candidate(challenger_N), candidate(champion_N)) <= {
        "worst_quartile, points against the champion, lower bound"
    }
    comparison = compared(challenger_N, champion_N)
    recall_C = [challenger_N[label == LABEL_N].mean() for label in range(CLASSES)]
    assert comparison.accuracy["worst_quartile"].value == pytest.approx(100 * np.mean(sorted(recall_C)[:2]))


@pytest.mark.parametrize(
    ("challenger", "champion", "name"),
    [
        ({"ece": 0.11}, {"ece": 0.05}, "increase of calibration error (ECE), points"),
        ({"latency_R": noisy_ms(16)}, {"latency_R": noisy_ms(10)}, "latency over the champion's, lower bound"),
        ({"ece": 0.21}, None, "calibration error (ECE), percent"),
        ({"latency_R": noisy_ms(110)}, None, "latency of one image, ms, lower bound"),
    ],
)
def test_a_better_model_must_keep_its_calibration_and_its_speed(
    challenger: dict[str, Any], champion: dict[str, Any] | None, name: str
) -> None:
    strong, weak = right_with(0.95, 0), right_with(0.8, 1)
    opponent = None if champion is None else candidate(weak, **champion)
    assert failed(candidate(strong), None if champion is None else candidate(weak)) == set()
    assert failed(candidate(strong, **challenger), opponent) == {name}


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_slower_model(seed: int) -> None:
    """1.2 times slower with a bound of 1.5, on a machine with pauses of ten times a request."""
    champion = candidate(right_with(0.8, 1), latency_R=noisy_ms(10, 2 * seed))
    challenger = candidate(right_with(0.9, 0), latency_R=noisy_ms(12, 2 * seed + 1))
    assert failed(challenger, champion) == set()


def test_latency_counts_only_if_the_policy_names_a_bound() -> None:
    silent = POLICY.model_copy(
        update={
            "first_model": POLICY.first_model.model_copy(update={"max_latency_ms": None}),
            "later_models": POLICY.later_models.model_copy(update={"max_latency_ratio": None}),
        }
    )
    assert [POLICY.judges_latency(first=first) for first in (True, False)] == [True, True]
    assert [silent.judges_latency(first=first) for first in (True, False)] == [False, False]
    slow = candidate(right_with(0.95, 0), latency_R=noisy_ms(1000))
    assert failed(slow, candidate(right_with(0.8, 1), latency_R=noisy_ms(1)), silent) == set()
    assert failed(slow, None, silent) == set()


def test_without_few_shot_classes_the_rest_decides() -> None:
    groups = {"all": GROUPS["all"], "many": GROUPS["all"]}
    decision = should_promote(candidate(right_with(0.9, 0)), candidate(right_with(0.8, 1)), groups, POLICY)
    assert decision.promote
    assert "few: no such class" in decision.reason.partition("not judged: ")[2]
    required = POLICY.model_copy(update={"required_groups": ("all", "few")})
    decision = should_promote(candidate(right_with(0.9, 0)), candidate(right_with(0.8, 1)), groups, required)
    assert not decision.promote
    assert "few: no such class" in decision.reason.partition("failed: ")[2]


def test_models_of_different_tests_are_not_compared() -> None:
    champion = candidate(right_with(0.5, 0))
    strong = candidate(right_with(0.9, 1))
    relabelled = strong.predictions.assign(label=(LABEL_N + 1) % CLASSES)
    for other, reason in [
        (replace(strong, classes=[f"other {name}" for name in NAMES]), "none of the champion's classes"),
        (replace(strong, predictions=relabelled), "other test images"),
        (replace(strong, predictions=strong.predictions.iloc[:-1]), "other test images"),
    ]:
        decision = should_promote(other, champion, GROUPS, POLICY)
        assert not decision.promote
        assert reason in decision.reason


# --- a champion older than the data -------------------------------------------------------------------------


def test_images_that_trained_the_champion_are_left_out_and_counted() -> None:
    """It knows half of the test images by heart: with them it wins, without them it loses."""
    by_heart_N = np.arange(len(LABEL_N)) % 2 == 0
    strong, champion = candidate(right_with(0.9, 0)), candidate(right_with(0.8, 1) | by_heart_N)
    assert not should_promote(strong, champion, GROUPS, POLICY).promote
    leaked = replace(champion, seen=strong.predictions["image"].to_numpy()[by_heart_N])
    decision = should_promote(strong, leaked, GROUPS, POLICY)
    assert decision.promote
    assert "600 of 1200 test images trained the champion" in decision.reason.partition("note: ")[2]
    assert "600" not in decision.reason.partition("note: ")[0]
    everything = replace(champion, seen=strong.predictions["image"].to_numpy())
    nothing_left = should_promote(strong, everything, GROUPS, POLICY)
    assert not nothing_left.promote
    assert "trained on all 1200 test images" in nothing_left.reason


def without_class(model: Candidate, gone: int) -> Candidate:
    """The model with a class less: a champion that answers the images of class `gone` with another one."""
    names = [name for index, name in enumerate(NAMES) if index != gone]
    top1_N = np.where(model.predictions["fused_top1"] == gone, (gone + 1) % CLASSES, model.predictions["fused_top1"])
    renumbered_N = np.array([names.index(NAMES[index]) for index in top1_N])
    return replace(model, predictions=model.predictions.assign(fused_top1=renumbered_N), classes=names)


def test_new_classes_are_compared_on_the_shared_ones_and_have_floors_of_their_own() -> None:
    right_N = right_with(0.85, 0)
    their_right_N = right_N ^ right_with(0.02, 1)
    champion = without_class(candidate(their_right_N), gone=2)
    equal = candidate(right_N, right_with(0.3, 2))
    decision = should_promote(equal, champion, GROUPS, POLICY)
    assert decision.promote, decision.reason
    assert "new to the champion: class 2 (1)" in decision.reason
    assert {check.name for check in decision.checks} >= {
        "new classes, percent",
        "new classes, points against zero-shot",
    }
    # its answers count by the name of the class, not by the number that the champion has for it
    gain = next(check for check in decision.checks if check.name.startswith("all, points against the champion"))
    shared_N = LABEL_N != 2
    assert gain.estimate == pytest.approx(100 * (right_N[shared_N].mean() - their_right_N[shared_N].mean()))
    # a new class that it never finds
    never = candidate(right_N & (LABEL_N != 2), right_with(0.3, 2))
    assert failed(never, champion) >= {"new classes, percent", "new classes, points against zero-shot"}
    # a new class at the price of the old ones
    assert failed(candidate(right_with(0.6, 3) | (LABEL_N == 2)), champion) >= {
        "all, points against the champion, lower bound"
    }


def test_classes_that_are_gone_are_said_and_not_judged() -> None:
    champion = replace(candidate(right_with(0.8, 1)), classes=[*NAMES[:-1], "a class of old"])
    kept_N = LABEL_N < CLASSES - 1
    strong = without_class(candidate(right_with(0.95, 0)), gone=CLASSES - 1)
    strong = replace(strong, predictions=strong.predictions[kept_N])
    champion = replace(champion, predictions=champion.predictions[kept_N])
    groups = {"all": list(range(CLASSES - 1)), "many": [0, 1], "medium": [2, 3], "few": [4]}
    decision = should_promote(strong, champion, groups, POLICY)
    assert decision.promote, decision.reason
    assert "gone: a class of old (1)" in decision.reason


@pytest.mark.parametrize("images", [1, 5])
def test_leaks_and_new_classes_let_no_equal_model_through_too_often(images: int) -> None:
    rng = np.random.default_rng(images)
    label_N, trials, promoted = np.repeat(np.arange(20), images), 200, 0
    groups = {"all": list(range(20))}
    policy = POLICY.model_copy(
        update={"later_models": POLICY.later_models.model_copy(update={"margin_points": {"all": 0.0}})}
    )
    for _ in range(trials):
        right_NN = rng.random((2, len(label_N))) < 0.7
        seen_N = rng.random(len(label_N)) < 0.3
        right_NN[1] |= seen_N
        table = pd.DataFrame({"index": np.arange(len(label_N)), "label": label_N, "image": np.arange(len(label_N))})
        models = [
            table.assign(base_top1=np.where(right_N, label_N, (label_N + 1) % 20), base_probability=0.7)
            for right_N in right_NN
        ]
        names = [str(index) for index in range(20)]
        champion = Candidate(models[1], names, np.flatnonzero(seen_N))
        promoted += should_promote(Candidate(models[0], names), champion, groups, policy).promote
    assert promoted / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_with_routing_off_the_base_branch_is_the_answer() -> None:
    strong = candidate(right_with(0.9, 0))
    base_alone = strong.predictions.drop(columns="fused_top1").assign(base_top1=strong.predictions["fused_top1"])
    champion = candidate(right_with(0.8, 1))
    base_alone["base_probability"] = strong.predictions["fused_probability"]
    decision = should_promote(replace(strong, predictions=base_alone), champion, GROUPS, POLICY)
    assert decision == should_promote(strong, champion, GROUPS, POLICY)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 1), st.floats(0.01, 1), st.integers(0, 10_000))
def test_never_promotes_what_is_worse_wherever_it_differs(accuracy: float, lost: float, seed: int) -> None:
    champion_N = right_with(accuracy, seed)
    challenger_N = champion_N & ~right_with(lost, seed + 1)
    assert not should_promote(candidate(challenger_N), candidate(champion_N), GROUPS, POLICY).promote


def test_never_promotes_what_is_wrong_about_every_image() -> None:
    none_N, all_N = np.zeros(len(LABEL_N), bool), np.ones(len(LABEL_N), bool)
    assert not should_promote(candidate(none_N), candidate(all_N), GROUPS, POLICY).promote
    assert not should_promote(candidate(none_N), None, GROUPS, POLICY).promote


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 1), st.floats(0.5, 1), st.integers(0, 10_000))
def test_the_order_of_images_does_not_matter(first: float, second: float, seed: int) -> None:
    challenger, champion = candidate(right_with(first, seed)), candidate(right_with(second, seed + 1))
    shuffled = replace(challenger, predictions=challenger.predictions.sample(frac=1, random_state=seed))
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


def test_the_bound_of_equal_models_covers_as_promised() -> None:
    """Alone, without the other checks, the margin on `all` lets 1 in 20 pass, not fewer: the bound is no trick."""
    trials = 400
    above = sum(compared(right_with(0.8, s), right_with(0.8, 9_999 + s)).gain["all"].lower > 0 for s in range(trials))
    error = 3 * np.sqrt(0.05 * 0.95 / trials)
    assert 0.05 - error <= above / trials <= 0.05 + error


@pytest.mark.parametrize("images", [1, 2, 5])
def test_few_images_per_class_promote_no_equal_model_too_often(images: int) -> None:
    rng = np.random.default_rng(images)
    label_N, trials = np.repeat(np.arange(20), images), 300
    quick = POLICY.model_copy(update={"bootstrap_samples": 100})
    above = 0
    for _ in range(trials):
        ours, theirs = (rng.random(len(label_N)) < 0.7 for _ in range(2))
        found = compare(ours, theirs, label_N, {"all": range(20)}, quick)
        assert found.gain["all"].lower < found.gain["all"].value
        above += found.gain["all"].lower > 0
    assert above / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_drawing_counts_is_drawing_images() -> None:
    rng = np.random.default_rng(0)
    label_N = np.repeat([0, 1], [60, 200])
    won_N = rng.random(260) < 0.3
    count_CK = np.array([[won_N[label_N == c].sum(), (~won_N[label_N == c]).sum()] for c in (0, 1)])
    blocks = drawn_counts(count_CK, resamplings=4000, seed=0)
    counted_S = np.concatenate([(block[:, :, 0] / count_CK.sum(axis=1)).mean(axis=1) for block in blocks])
    drawn_S = np.mean(
        [won_N[rng.choice(np.flatnonzero(label_N == c), (4000, (label_N == c).sum()))].mean(axis=1) for c in (0, 1)],
        axis=0,
    )
    assert counted_S.mean() == pytest.approx(drawn_S.mean(), abs=0.002)
    assert np.quantile(counted_S, [0.05, 0.95]) == pytest.approx(np.quantile(drawn_S, [0.05, 0.95]), abs=0.006)


def test_pairs_are_kept_together() -> None:
    """A challenger that wins one image in ten more than its opponent: the bound is the paired one, drawn by image."""
    other_N = right_with(0.7, 0)
    right_N = other_N | right_with(0.1, 1)
    rng = np.random.default_rng(2)
    drawn = [rng.choice(np.flatnonzero(c == LABEL_N), (2000, IMAGES_PER_CLASS)) for c in range(CLASSES)]
    gain_S = np.mean([(right_N[rows] * 1.0 - other_N[rows]).mean(axis=1) for rows in drawn], axis=0)
    gain = compared(right_N, other_N, samples=4000).gain["all"]
    assert gain.value == pytest.approx(100 * (right_N.mean() - other_N.mean()))
    assert gain.lower == pytest.approx(100 * np.quantile(gain_S, 0.05), abs=0.15)


def test_memory_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    right_N, other_N = right_with(0.8, 0), right_with(0.7, 1)
    whole = compared(right_N, other_N)
    monkeypatch.setattr("mdpr.evaluation.uncertainty.DRAWN_AT_ONCE", 50)
    assert compared(right_N, other_N) == whole


def test_the_shipped_policy_is_valid() -> None:
    policy = read_policy(Path(__file__).parents[3] / "mlflow" / "promotion.yaml")
    assert {"all", "few", "worst_quartile"} <= set(policy.later_models.margin_points)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (None, {"confidense": 0.9}, "confidense is not a setting"),
        (None, {"confidence": 95}, "confidence = 95: must be less than 1"),
        (None, {"seed": None}, "seed = None: "),
        ("later_models", {"margin_points": {"few": 1}}, "later_models: .*must name the group all"),
        ("later_models", {"margin_points": {"all": 1, "tail": 1}}, "later_models.margin_points.tail"),
        ("later_models", {"max_latency_ratio": 0}, "later_models.max_latency_ratio"),
        ("first_model", {"max_ece_percent": 200}, "first_model.max_ece_percent"),
        ("first_model", {"floor_percent": {"all": 101}}, "first_model.floor_percent.all"),
    ],
)
def test_a_policy_with_a_fault_names_it(
    tmp_path: Path, section: str | None, change: dict[str, object], message: str
) -> None:
    content = POLICY.model_dump()
    (content if section is None else content[section]).update(change)
    path = tmp_path / "promotion.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message) as caught:
        read_policy(path)
    assert "\n" not in str(caught.value)


def test_a_missing_key_or_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "promotion.yaml"
    with pytest.raises(ConfigError, match=r"promotion\.yaml does not exist"):
        read_policy(path)
    path.write_text(yaml.safe_dump({key: value for key, value in POLICY.model_dump().items() if key != "seed"}))
    with pytest.raises(ConfigError, match="seed is missing"):
        read_policy(path)


def test_a_margin_asks_for_more_over_the_champion_and_over_no_one_else() -> None:
    strong, weak = candidate(right_with(0.9, 0), right_with(0.7, 2)), candidate(right_with(0.8, 1))
    asking = POLICY.with_margin(50)
    assert POLICY.with_margin(0) == POLICY
    assert failed(strong, weak, asking) == {"all, points against the champion, lower bound"}
    assert should_promote(strong, None, GROUPS, asking) == should_promote(strong, None, GROUPS, POLICY)


def test_the_bound_of_a_median_is_below_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    bounds = [median_bound(random.lognormal(0.0, 1.0, 100), 0.95) for _ in range(2000)]
    assert np.mean([lower <= 1.0 for _, lower in bounds]) >= 0.95
    assert all(lower <= median for median, lower in bounds)
