"""Paired tests and Holm's correction, and what may not be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.unit.evaluation.conftest import PICTURES

from mdpr.artifacts import ClassInfo, write_seen
from mdpr.cli import cli
from mdpr.errors import ArtifactError
from mdpr.evaluation.comparison import align, compare, holm, mcnemar_p, read_results
from mdpr.evaluation.predictions import Predictions
from mdpr.evaluation.tables import Results

Write = Callable[..., Path]
CLASSES = 6


@pytest.fixture
def write(
    tmp_path: Path,
    predictions: Callable[..., object],
    classes: Callable[..., list[ClassInfo]],
    answers: Callable[..., Predictions],
) -> Write:
    def run(folder_name: str, images: int = 40, seed: int = 0) -> Path:
        folder = tmp_path / folder_name
        folder.mkdir()
        table, made, zero_C = answers(predictions(CLASSES, images, seed=seed)), classes(CLASSES), np.zeros(CLASSES)
        Results.of(table, made, zero_C.astype(int), zero_C, PICTURES, resamplings=50).write(folder)
        write_seen(folder, train_N=np.array([-1]), val_N=np.array([-2]))
        return folder

    return run


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_its_definition(p_values: list[float]) -> None:
    corrected = holm(p_values)
    count = len(p_values)
    for p, mine in zip(p_values, corrected, strict=True):
        smaller = sorted(p_values)[: sorted(p_values).index(p) + p_values.count(p)]
        expected = max((count - rank) * value for rank, value in enumerate(smaller))
        assert mine == pytest.approx(min(1.0, expected))


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(9, 1) == pytest.approx(2 * sum(stats.binom.pmf(k, 10, 0.5) for k in (0, 1)))
    assert mcnemar_p(1, 9) == mcnemar_p(9, 1)


def test_a_run_does_not_differ_from_itself_and_a_worse_one_does(write: Write) -> None:
    same, other = write("same"), write("other")
    differences = compare([read_results(same, "a"), read_results(other, "b")])
    assert [item.difference for item in differences] == [0] * len(differences)
    assert all(item.p == item.p_holm == 1 for item in differences)
    better, worse = read_results(write("better", images=200), "better"), read_results(write("x", images=200), "worse")
    worse.right_N[:600] = False  # the first classes are lost
    found = {item.figure: item for item in compare([better, worse])}
    assert found["all"].significant
    assert found["images"].significant
    assert found["all"].difference < 0
    assert found["all"].interval is not None
    assert found["all"].interval[0] <= found["all"].difference <= found["all"].interval[1] < 0


def test_runs_of_other_test_sets_are_compared_on_what_they_share_without_leaks(write: Write) -> None:
    first, second = (read_results(write(name, seed=seed), name) for seed, name in enumerate(("first", "second")))
    rows = len(first.label_N)
    first = replace(first, seen=np.array([3]))
    order_N = np.random.default_rng(0).permutation(rows)[: rows // 2]
    reordered = replace(
        second, label_N=first.label_N[order_N], right_N=second.right_N[order_N], image_N=order_N, seen=order_N[:20]
    )
    aligned, notes = align([first, reordered])
    kept_N = np.sort(order_N[20:])
    kept_N = kept_N[kept_N != 3]
    assert sorted(aligned[0].image_N.tolist()) == kept_N.tolist()
    np.testing.assert_array_equal(aligned[0].label_N, aligned[1].label_N)
    np.testing.assert_array_equal(aligned[1].right_N, second.right_N[aligned[1].image_N])
    assert f"{rows // 2} test images are common" in notes[0]
    assert f"{rows // 2 - len(kept_N)} test images trained one of the runs" in " ".join(notes)
    assert len(compare(aligned)) > 1
    fewer = replace(reordered, classes=["new", *first.classes[1:]])
    aligned, _ = align([first, fewer])
    assert list(aligned[0].classes) == list(first.classes[1:])
    with pytest.raises(ArtifactError, match="no test image is left"):
        align([first, replace(reordered, seen=order_N)])


def test_command_prints_a_table_or_one_json_object(write: Write, tmp_path: Path) -> None:
    folders = [str(write(name, seed=seed)) for seed, name in enumerate(("one", "two", "three"))]
    arguments = ["compare", *folders]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "Class-balanced accuracy" in shown.output
    content = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).output)
    assert [run["run"] for run in content["runs"]] == folders
    pairs = {(item["first"], item["second"]) for item in content["differences"]}
    assert pairs == {(folders[0], folders[1]), (folders[0], folders[2]), (folders[1], folders[2])}
    accuracy = {run["run"]: run["all"] for run in content["runs"]}
    for item in content["differences"]:
        assert item["p"] <= item["p_holm"] <= 1
        if item["figure"] == "all":
            assert item["difference"] == pytest.approx(accuracy[item["second"]] - accuracy[item["first"]])


def test_command_names_what_is_wrong(write: Write, tmp_path: Path) -> None:
    folder = str(write("one"))
    assert "at least two" in CliRunner().invoke(cli, ["compare", folder]).output
    assert "named twice" in CliRunner().invoke(cli, ["compare", folder, folder]).output
    result = CliRunner().invoke(cli, ["compare", folder, str(tmp_path / "none")])
    assert isinstance(result.exception, ArtifactError)
    assert "runs:/RUN_ID" in str(result.exception)
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(cli, ["compare", folder, str(tmp_path / "empty")])
    assert "predictions.parquet is missing: run evaluate first" in str(result.exception)
    (write("unseen") / "seen.safetensors").unlink()
    result = CliRunner().invoke(cli, ["compare", folder, str(tmp_path / "unseen")])
    assert "seen.safetensors is missing: run evaluate first" in str(result.exception)
