"""Splits that stay when images come, go and change places; what the chances leave open is decided by rule."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdpr.artifacts import NO_HASH, SPLITS, Pictures, Split, read_pictures, write_pictures
from mdpr.data.stable_splits import Groups, Previous, chances, cut_by_content, draw
from mdpr.errors import ArtifactError, DataError
from mdpr.params import PrepareParams

NATURAL = PrepareParams(profile="natural")
TAIL = PrepareParams(max_images_per_class=60, imbalance_ratio=4, val_images_per_class=20)
NAMES = ("ant", "bee", "cat")
Cut = dict[int, Split]


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Pictures that are nothing like each other: one number is both digest and hash."""
    return np.random.default_rng(seed).integers(1, 2**62, count, np.uint64)


def cut(
    keys: np.ndarray,
    labels: Sequence[int],
    params: PrepareParams = NATURAL,
    previous: Cut | None = None,
    names: Sequence[str] = NAMES,
    **options: object,
) -> Cut:
    """The split of each picture."""
    pictures = Pictures(keys.astype(np.int64), keys)
    before = {} if previous is None else as_pictures(previous)
    groups = Groups.of(pictures, params.near_duplicate_bits, before)
    settings = {"with_val": True, "with_test": True, **options}
    rows, _ = cut_by_content(np.array(labels), names, groups, params, **settings)  # type: ignore[arg-type]
    return {int(keys[row]): name for name, taken in rows.items() for row in taken}


def as_pictures(cut: Cut) -> dict[Split, Pictures]:
    of = {name: np.array([key for key, split in cut.items() if split == name], np.uint64) for name in SPLITS}
    return {name: Pictures(keys.astype(np.int64), keys) for name, keys in of.items()}


def moved(before: Cut, after: Cut) -> int:
    return sum(before[key] != after[key] for key in before.keys() & after.keys())


@pytest.mark.parametrize("params", [NATURAL, TAIL, TAIL.model_copy(update={"val_from": "train_share"})])
@pytest.mark.parametrize("change", ["come", "go", "change places", "belong to a class more"])
def test_no_image_moves_when_others(change: str, params: PrepareParams) -> None:
    keys, labels = drawn(600), np.repeat([0, 1, 2], 200)
    before = cut(keys, labels, params)
    if change == "come":
        after = cut(np.append(keys, drawn(300, 1)), np.append(labels, np.repeat([0, 1, 2], 100)), params)
    elif change == "go":
        kept = np.random.default_rng(2).permutation(600)[:450]
        after = cut(keys[kept], labels[kept], params)
    elif change == "change places":
        order = np.random.default_rng(3).permutation(600)
        assert cut(keys[order], labels[order], params) == before
        return
    else:  # the first one, so that all others have another number
        more, labels = drawn(200, 4), np.append(labels + 1, np.zeros(200, int))
        after = cut(np.append(keys, more), labels, params, names=("aardvark", *NAMES))
    assert len(before.keys() & after.keys()) > 100
    assert moved(before, after) == 0


def test_shares_hold_within_sampling_error() -> None:
    split_of = cut(drawn(20_000), np.zeros(20_000, int), names=("ant",))
    shares = [sum(split == name for split in split_of.values()) / 20_000 for name in SPLITS]
    assert shares == pytest.approx([0.64, 0.16, 0.2], abs=0.015)


def test_the_test_set_hangs_on_its_share_alone() -> None:
    keys, labels = drawn(600), np.repeat([0, 1, 2], 200)
    seeds = [cut(keys, labels, PrepareParams(profile="natural", seed=seed)) for seed in range(2)]
    tests = [{key for key, split in split_of.items() if split == "test"} for split_of in seeds]
    assert tests[0] == tests[1]
    assert seeds[0] != seeds[1]
    larger = cut(keys, labels, PrepareParams(profile="natural", test_share=0.3))
    assert tests[0] < {key for key, split in larger.items() if split == "test"}


@given(st.lists(st.integers(3, 9), min_size=3, max_size=3), st.integers(0, 1000))
def test_a_class_of_three_is_in_every_split(counts: list[int], seed: int) -> None:
    labels = np.repeat([0, 1, 2], counts)
    keys = drawn(len(labels), seed)
    split_of = cut(keys, labels)
    for index in range(3):
        assert {split_of[int(key)] for key in keys[labels == index]} == set(SPLITS)


@given(st.integers(0, 200), st.integers(3, 8))
def test_small_classes_grow_without_a_move_beside_their_previous_version(seed: int, count: int) -> None:
    keys, labels = drawn(3 * 20, seed), np.tile([0, 1, 2], 20)
    before = cut(keys[: 3 * count], labels[: 3 * count])
    after = cut(keys, labels, previous=before)
    assert moved(before, after) == 0
    rest = slice(6, None)
    left = {(label, after[int(key)]) for key, label in zip(keys[rest], labels[rest], strict=True)}
    emptied = 9 - len(left)  # splits that lost their last image of a class must get another
    assert moved(after, cut(keys[rest], labels[rest], previous=after)) <= 2 * emptied


def test_without_the_previous_version_few_images_of_small_classes_move() -> None:
    moves = sum(
        moved(cut(keys[:3], [0, 0, 0], names=("ant",)), cut(keys, [0] * 20, names=("ant",)))
        for keys in (drawn(20, seed) for seed in range(200))
    )
    assert 0 < moves / 200 < 1.5  # per class that grows from 3 images to 20


def near(key: np.uint64, bits: int) -> np.uint64:
    return key ^ np.uint64(2**bits - 1)


def test_pictures_that_look_alike_share_a_split() -> None:
    keys = drawn(300)
    copies = np.array([near(near(key, 2), 0) for key in keys], np.uint64)
    chain = np.array([near(key, 4) for key in keys], np.uint64)  # 2 bits from its copy, 4 from the picture
    split_of = cut(np.concatenate([keys, copies, chain]), np.zeros(900, int), names=("ant",))
    for trio in zip(keys, copies, chain, strict=True):
        assert len({split_of[int(key)] for key in trio}) == 1
    assert len(set(split_of.values())) == 3


def test_a_group_keeps_its_split_when_a_member_goes_or_comes_beside_its_previous_version() -> None:
    keys = drawn(300)
    copies = np.array([near(key, 2) for key in keys], np.uint64)
    labels = np.zeros(300, int)
    alone, together = cut(keys, labels, names=("ant",)), np.append(keys, copies)
    grown = cut(together, np.zeros(600, int), previous=alone, names=("ant",))
    assert moved(alone, grown) == 0
    replaced = cut(copies, labels, previous=alone, names=("ant",))
    assert [replaced[int(copy)] for copy in copies] == [alone[int(key)] for key in keys]
    afresh = cut(together, np.zeros(600, int), names=("ant",))
    assert 0 < moved(alone, afresh) < 0.4 * 300  # half of the groups take the newcomer's key, and half of those move


def test_a_group_joined_from_two_splits_goes_to_training() -> None:
    key = drawn(1)[0]
    others = drawn(50, 1)
    previous: Cut = {int(key): "test", int(near(key, 4)): "train"}
    keys = np.append(others, [key, near(key, 2), near(key, 4)])
    split_of = cut(keys, np.zeros(53, int), previous=previous, names=("ant",))
    assert {split_of[int(near(key, bits))] for bits in (0, 2, 4)} == {"train"}


@pytest.mark.parametrize(("with_val", "with_test"), [(True, False), (False, True), (False, False)])
def test_what_the_source_brings_is_not_cut(with_val: bool, with_test: bool) -> None:
    keys = drawn(90)
    split_of = cut(keys, np.repeat([0, 1, 2], 30), with_val=with_val, with_test=with_test)
    expected = {"train", *(["val"] if with_val else []), *(["test"] if with_test else [])}
    assert set(split_of.values()) == expected
    assert len(split_of) == 90


def test_a_long_tail_has_the_counts_of_its_profile() -> None:
    keys, labels = drawn(600), np.repeat([0, 1, 2], 200)
    split_of = cut(keys, labels, TAIL)
    of_class = [[split_of.get(int(key)) for key in keys[labels == index]] for index in range(3)]
    assert [found.count("train") for found in of_class] == [60, 30, 15]
    assert [found.count("val") for found in of_class] == [20, 20, 20]
    with pytest.raises(DataError, match=r"class 0 \(ant\) has \d+ images, but 200 for training and 20"):
        cut(keys, labels, TAIL.model_copy(update={"max_images_per_class": 200}))


def test_left_over_validation_holds_no_look_alike_of_training() -> None:
    keys = drawn(20)
    keys[1:10] = keys[1]  # of one class ten images, two pictures
    params = PrepareParams(max_images_per_class=6, imbalance_ratio=1, val_images_per_class=3)
    with pytest.raises(DataError, match=r"class ant has [01] images for validation that look like none in training"):
        cut(keys, np.repeat([0, 1], 10), params, with_test=False, names=("ant", "bee"))


def test_too_few_different_pictures() -> None:
    keys = np.append(drawn(40), np.full(5, 77, np.uint64))
    labels = np.append(np.repeat([0, 1], 20), np.full(5, 2))
    with pytest.raises(DataError, match=r"class 2 \(cat\) has 1 different pictures, but each of 3 splits needs one"):
        cut(keys, labels)
    split_of = cut(keys, labels, train_only={2})
    assert split_of[77] == "train"


def test_a_picture_of_two_classes_is_for_training_if_one_of_them_is() -> None:
    for seed in range(20):
        keys = drawn(40, seed)
        split_of = cut(np.append(keys, keys[:4]), np.append(np.repeat([0, 1], 20), [2] * 4), train_only={2})
        assert {split_of[int(key)] for key in keys[:4]} == {"train"}


def test_rows_without_a_label_are_in_no_split() -> None:
    keys = drawn(90)
    labels = np.where(np.arange(90) % 3 == 0, -1, np.repeat([0, 1, 2], 30))
    assert cut(keys, labels).keys() == {int(key) for key in keys[labels >= 0]}


def test_pictures_of_one_colour_are_alike_by_their_bytes_only() -> None:
    pictures = Pictures(np.array([5, 5, 6, 7]), np.array([NO_HASH, NO_HASH, NO_HASH, 1], np.uint64))
    groups = Groups.of(pictures, 15)
    assert len(set(groups.group_N.tolist())) == 3
    assert groups.group_N[0] == groups.group_N[1]
    alike = groups.alike()
    assert (alike.groups, alike.images, alike.largest) == (1, 2, 2)


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 100))
def test_a_draw_takes_at_least_one_and_leaves_enough(count: int, share: float, seed: int) -> None:
    chance_G = chances(drawn(count, seed), "x")
    for spare in {1, count - 1}:
        taken = draw(chance_G, share, [np.arange(count)], spare)
        assert 1 <= taken.sum() <= max(1, count - spare)
        expected = (chance_G < share).sum()
        if 1 <= expected <= count - spare:
            assert np.array_equal(taken, chance_G < share)
        assert taken.sum() in (0, count) or chance_G[taken].max() < chance_G[~taken].min()


def test_what_became_of_images(tmp_path: Path) -> None:
    def pictures(**of: Sequence[int]) -> Mapping[Split, Pictures]:
        return {name: Pictures(np.array(of[name]), np.array(of[name], np.uint64)) for name in SPLITS}

    write_pictures(tmp_path, pictures(train=[1, 2, 3], val=[4], test=[5, 6]))
    since = Previous.read(str(tmp_path)).compare(pictures(train=[1, 2, 5], val=[4], test=[6, 7, 8]))
    assert (since.stayed, since.moved, since.came, since.went) == (4, 1, 2, 1)
    assert "1 images moved" in since.in_words()


def test_a_previous_version_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; under `dvc repro`"):
        Previous.read(str(tmp_path / "gone"))
    with pytest.raises(ArtifactError, match=r"has no pictures\.parquet"):
        Previous.read(str(tmp_path))
    with pytest.raises(ArtifactError, match="is damaged"):
        read_pictures(io.BytesIO(b"nothing"), "x")
