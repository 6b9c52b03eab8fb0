"""Emblems: the same seed gives the same bytes, what is drawn is what the truth says, and training never sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mdpr.artifacts import read_images, sha256
from mdpr.artifacts.truth import STATES, Truth, read_truth
from mdpr.data.sources.emblems import (
    ABSENT,
    ATTRIBUTES,
    CLASSES,
    DIMENSIONS_SHOW,
    FOREIGN,
    SETTINGS,
    SHOWN,
    VALUES,
    build_world,
    draw_pictures,
    render,
)
from mdpr.errors import ArtifactError
from mdpr.params import Params, PrepareParams
from mdpr.stages.stage import load_stage, run_stage

SMALL = {"source": "emblems", "max_images_per_class": 8, "imbalance_ratio": 4, "val_images_per_class": 2}


def prepare(folder: Path, **changes: object) -> Path:
    root = folder / "root"
    root.mkdir(parents=True)
    params = PrepareParams.model_validate({**SMALL, "root": str(root), **changes})
    run_stage(load_stage("prepare"), {"prepared": folder / "prepared"}, Params(prepare=params))
    return folder / "prepared"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("emblems") / "first")


@pytest.fixture(scope="module")
def truth(prepared: Path) -> Truth:
    found = read_truth(prepared)
    assert found is not None
    return found


def test_classes_differ_in_two_values_from_one_class_and_in_three_from_the_others() -> None:
    world = build_world()
    assert len(set(world.names)) == len(world.names) == CLASSES
    shared_CC = world.shared_CC()
    np.fill_diagonal(shared_CC, 0)
    assert ((shared_CC == 3).sum(axis=1) == 1).all()
    assert shared_CC.max() == 3
    assert world.hidden_share_C.sum() == pytest.approx(1)
    assert world.hidden_share_C.max() / world.hidden_share_C.min() == pytest.approx(50)


def test_the_same_seed_gives_the_same_bytes_and_another_one_the_same_test_set(prepared: Path, tmp_path: Path) -> None:
    again, other = prepare(tmp_path / "again"), prepare(tmp_path / "other", seed=1)
    for file in sorted(prepared.iterdir()):
        assert sha256(again / file.name) == sha256(file), file.name
    assert sha256(other / "test.parquet") == sha256(prepared / "test.parquet")
    shared = {record.image for record in read_images(prepared / "train.parquet")}
    assert not shared & {record.image for record in read_images(other / "train.parquet")}


def test_truth_has_a_row_for_every_picture_in_order(prepared: Path, truth: Truth) -> None:
    for split in ("train", "val", "test"):
        images, rows = list(read_images(prepared / f"{split}.parquet")), truth.of(split)
        assert rows["path"].tolist() == [record.path for record in images]
        assert rows["label"].tolist() == [record.label for record in images]


def test_truth_agrees_with_the_classes(truth: Truth) -> None:
    of_class = [item.values for item in truth.world.classes]
    for attribute in ATTRIBUTES:
        true = truth.pictures["label"].map(lambda label, key=attribute: of_class[label][key])
        drawn, state = truth.pictures[attribute], truth.pictures[f"{attribute}_state"]
        assert ((drawn == true) == (state == "shown")).all()
        assert ((drawn == "") == (state == "absent")).all()
    for dimension, attributes in truth.world.dimensions.items():
        shown = pd.concat([truth.pictures[f"{key}_state"] == "shown" for key in attributes], axis=1).any(axis=1)
        assert ((truth.pictures[dimension] == "shown") == shown).all()
    assert truth.world.dimensions == DIMENSIONS_SHOW


@pytest.mark.parametrize("setting", SETTINGS)
def test_states_are_drawn_with_their_probabilities(setting: str) -> None:
    absent_A, foreign_A = SETTINGS[setting]
    world, random, pictures = build_world(), np.random.default_rng(5), 20_000
    label_N = random.integers(0, CLASSES, pictures)
    drawn = draw_pictures(label_N, world.value_CA[label_N], absent_A, foreign_A, random)
    for state, expected_A in ((ABSENT, absent_A), (FOREIGN, foreign_A)):
        np.testing.assert_allclose((drawn.state_NA == state).mean(axis=0), expected_A, atol=0.015)
    is_true_NA = drawn.drawn_NA == world.value_CA[label_N]
    assert (is_true_NA == (drawn.state_NA != FOREIGN)).all()


@pytest.mark.parametrize("attribute", range(len(ATTRIBUTES)))
def test_every_value_and_every_state_looks_different(attribute: int) -> None:
    """With the same random numbers, what differs is the attribute alone."""
    looks = []
    for state in range(len(STATES)):
        for value in range(VALUES) if state != ABSENT else [0]:
            drawn_A, state_A = np.zeros(len(ATTRIBUTES), int), np.full(len(ATTRIBUTES), SHOWN)
            drawn_A[attribute], state_A[attribute] = value, state
            looks.append(render(drawn_A, state_A, np.random.default_rng(3)).tobytes())
    has_cue = attribute >= 2
    assert len(set(looks)) == (2 * VALUES if has_cue else VALUES) + 1


def test_a_drawn_set_comes_from_no_repository_and_has_its_truth_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="emblems does not come from a repository"):
        PrepareParams.model_validate({"source": "emblems", "repo": "https://example.org/x.git", "path": "data"})
    assert read_truth(tmp_path) is None
    (tmp_path / "truth.parquet").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"truth\.json is missing"):
        read_truth(tmp_path)
