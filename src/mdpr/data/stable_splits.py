"""Splits that stay: which split a picture of own data is in follows from the picture, not from its neighbours.

Pictures that look alike are one group, and a group is in one split. Its key is a perceptual hash: that of the member
whose key hashes lowest, so that copies of a picture, saved again, change nothing. From the key come three numbers that
are uniform in [0, 1), called chances: a group is in the test set if the first is below `prepare.test_share`, in the
validation set if the second is below `prepare.val_share`, and the third is its place in the order in which a long tail
is filled. Only the last two depend on `prepare.seed`: every cut is judged by the same test set.

Two things cannot follow from a picture and nothing else. A class in which the chances leave a split empty gives it the
group with the lowest chance. And a picture that looks like one of another group joins the two. Both are decided as
before for images that an earlier version of the data set has (`previous`).

N images of the pool, G groups, C classes. A row whose label is negative is in no split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from mdpr.artifacts import (
    NO_HASH,
    PICTURES_FILE,
    SPLITS,
    Alike,
    Pictures,
    Since,
    Split,
    Validation,
    read_pictures,
    sha256,
)
from mdpr.data.dvc_origin import read_tracked
from mdpr.data.near_duplicates import groups_within
from mdpr.data.splits import SMALL_CLASS_FIX, planned_rows, takes_left_over
from mdpr.errors import DataError
from mdpr.params import PrepareParams

UNKNOWN = len(SPLITS)
TRACKED_PICTURES = f"data/prepared/{PICTURES_FILE}"  # in a project, where dvc.yaml has it


@dataclass(frozen=True)
class Previous:
    """The pictures of an earlier version of a data set, by split, and the sha256 of the file that holds them."""

    pictures: Mapping[Split, Pictures]
    digest: str

    @classmethod
    def read(cls, name: str) -> Previous:
        """`name`: the folder of prepared data, or a Git revision of this project (`prepare.previous`).

        Raises `DataError` if it is neither, and `ArtifactError` for a folder without pictures.parquet.
        """
        folder = Path(name)
        if folder.is_dir():
            file = folder / PICTURES_FILE
            return cls(read_pictures(file, name), sha256(file))
        try:
            content = read_tracked(name, TRACKED_PICTURES)
        except DataError as error:
            raise DataError(f"prepare.previous = {name}: {error}") from None
        return cls(read_pictures(BytesIO(content), f"prepare.previous = {name}"), hashlib.sha256(content).hexdigest())

    def compare(self, pictures: Mapping[Split, Pictures]) -> Since:
        """The changes of the images since, each image counted once."""
        before, now = (
            {image: name for name in SPLITS for image in of[name].image_N.tolist()} for of in (self.pictures, pictures)
        )
        both = before.keys() & now.keys()
        moved = sum(before[image] != now[image] for image in both)
        return Since(
            pictures=self.digest,
            stayed=len(both) - moved,
            moved=moved,
            came=len(now) - len(both),
            went=len(before) - len(both),
        )


@dataclass(frozen=True)
class Groups:
    """Pictures that look alike, as groups.

    group_N    int64, the group of each picture
    image_N    int64, the digest of each picture
    key_G      uint64, the hash that stands for the group
    before_G   int64, the index in SPLITS of the split that the group was in before, or UNKNOWN
    """

    group_N: np.ndarray
    image_N: np.ndarray
    key_G: np.ndarray
    before_G: np.ndarray

    @classmethod
    def of(cls, pictures: Pictures, max_bits: int, previous: Mapping[Split, Pictures] | None = None) -> Groups:
        """Groups of pictures linked by steps of at most `max_bits` bits; those of one colour are linked by their bytes.

        The pictures of `previous` link too, so that a group stays one when a member goes. Of a group that was in two
        splits the earlier one counts, as what was trained on must not be tested on.
        """
        earlier = [
            (previous or {}).get(name, Pictures(np.empty(0, np.int64), np.empty(0, np.uint64))) for name in SPLITS
        ]
        image_M, hash_M = (np.concatenate(column) for column in zip(pictures, *earlier, strict=True))
        group_M = np.empty(len(image_M), np.int64)
        plain_M = hash_M == NO_HASH
        group_M[~plain_M] = groups_within(hash_M[~plain_M], max_bits)
        group_M[plain_M] = np.unique(image_M[plain_M], return_inverse=True)[1] + group_M[~plain_M].max(initial=-1) + 1
        now = slice(len(pictures.image_N))
        numbers, group_N = np.unique(group_M[now], return_inverse=True)
        before = np.full(group_M.max(initial=-1) + 1, UNKNOWN)
        split_M = np.repeat(range(len(SPLITS)), [len(item.image_N) for item in earlier])
        np.minimum.at(before, group_M[now.stop :], split_M)
        key_N = np.where(plain_M, image_M.astype(np.uint64), hash_M)[now]
        order = np.lexsort((chances(key_N, "group"), group_N))
        first = np.unique(group_N[order], return_index=True)[1]
        return cls(group_N, pictures.image_N, key_N[order][first], before[numbers])

    def alike(self) -> Alike:
        """The groups of more than one picture."""
        sizes = np.bincount(self.group_N)
        return Alike(
            groups=int((sizes > 1).sum()), images=int(sizes[sizes > 1].sum()), largest=int(sizes.max(initial=0))
        )

    def chances(self, salt: str, first: Collection[str], last: Collection[str]) -> np.ndarray:
        """float64 (G,), uniform in [0, 1); for groups that were in a split of `first` less 1, of `last` plus 1."""
        index: dict[str, int] = {name: number for number, name in enumerate(SPLITS)}
        was_first, was_last = (np.isin(self.before_G, [index[name] for name in names]) for names in (first, last))
        return chances(self.key_G, salt) - was_first + was_last

    def members(self, labels_N: np.ndarray, classes: int) -> list[np.ndarray]:
        """The groups of each class."""
        return [np.unique(self.group_N[labels_N == index]) for index in range(classes)]


def chances(keys: np.ndarray, salt: str) -> np.ndarray:
    """A number in [0, 1) for each key (uint64), as good as random, always the same one for the same salt."""
    secret = salt.encode()
    drawn = (hashlib.blake2b(int(key).to_bytes(8), key=secret, digest_size=6).digest() for key in keys.tolist())
    return np.fromiter((int.from_bytes(digest) / 2**48 for digest in drawn), np.float64, len(keys))


def cut_by_content(
    labels_N: np.ndarray,
    names: Sequence[str],
    groups: Groups,
    params: PrepareParams,
    *,
    with_val: bool,
    with_test: bool,
    train_only: Collection[int] = (),
) -> tuple[dict[Split, np.ndarray], Validation]:
    """Rows (increasing) of train and, if the source has none, of val and test; and where validation came from.

    Of each class but those `train_only`: at least one group in each of the splits, whatever the chances. A long tail
    keeps as many images as its profile says, in the order of their chances; left-over validation is filled from the
    other end. Raises `DataError` that names a class with too few different pictures.
    """
    everyone = set(range(len(names)))
    _check_sizes(groups.members(labels_N, len(names)), names, 1 + with_val + with_test, everyone - set(train_only))
    rest_N = labels_N.copy()
    if with_test:
        chance_G = groups.chances("test", ("test",), ("train", "val"))
        members = _without(groups.members(labels_N, len(names)), train_only)
        is_test_G = draw(chance_G, params.test_share, members, spare=1 + with_val)
        rest_N[is_test_G[groups.group_N]] = -1
    left_over = takes_left_over(params, with_val=with_val)
    counts_C = np.bincount(rest_N[rest_N >= 0], minlength=len(names))
    kept_C, left_C = planned_rows(counts_C, names, params, left_over=left_over, train_only=train_only)
    place_G = groups.chances(f"keep {params.seed}", ("train",) if left_over else ("train", "val"), ("val",) * left_over)
    order = np.lexsort((groups.image_N, place_G[groups.group_N], rest_N))
    of_class = np.split(order, np.searchsorted(rest_N[order], np.arange(len(names))))[1:]
    kept_N = np.full(len(labels_N), -1)
    for rows, count in zip(of_class, kept_C, strict=True):
        kept_N[rows[:count]] = rest_N[rows[:count]]
    is_val_N = np.zeros(len(labels_N), bool)
    if left_over:
        is_kept_G = np.isin(np.arange(len(groups.key_G)), groups.group_N[kept_N >= 0])
        for name, rows, count in zip(names, of_class, left_C, strict=True):
            free = rows[~is_kept_G[groups.group_N[rows]]]
            if len(free) < count:
                raise DataError(
                    f"train: class {name} has {len(free)} images for validation that look like none in training, "
                    f"{count} are needed: lower prepare.max_images_per_class or prepare.val_images_per_class"
                )
            is_val_N[free[len(free) - count :]] = True
    elif with_val:
        chance_G = groups.chances(f"val {params.seed}", ("val",), ("train",))
        members = _without(groups.members(kept_N, len(names)), train_only)
        _check_sizes(members, names, 2, everyone - set(train_only))
        is_val_N = draw(chance_G, params.val_share, members, spare=1)[groups.group_N] & (kept_N >= 0)
    cut: dict[Split, np.ndarray] = {"train": np.flatnonzero((kept_N >= 0) & ~is_val_N)}
    if with_val:
        cut["val"] = np.flatnonzero(is_val_N)
    if with_test:
        cut["test"] = np.flatnonzero((labels_N >= 0) & (rest_N < 0))
    return cut, "source" if not with_val else "left_over" if left_over else "train_share"


def draw(chance_G: np.ndarray, share: float, of_class: Iterable[np.ndarray], spare: int) -> np.ndarray:
    """The groups (bool (G,)) whose chance is below `share`; of each class at least one, and at least `spare` not.

    Groups of no class in `of_class` are not drawn.
    """
    in_order = [members[np.argsort(chance_G[members], kind="stable")] for members in of_class if len(members)]
    drawn_G = np.zeros(len(chance_G), bool)
    for members in in_order:
        drawn_G[members] = chance_G[members] < share
    for members in in_order:
        drawn = members[drawn_G[members]]
        drawn_G[drawn[max(1, len(members) - spare) :]] = False
    for members in in_order:
        if not drawn_G[members].any():
            drawn_G[members[0]] = True
    return drawn_G


def _without(members: Sequence[np.ndarray], train_only: Collection[int]) -> list[np.ndarray]:
    """The groups of each class without those that hold a picture of a class for training only."""
    kept = [members[index] for index in train_only]
    held = np.unique(np.concatenate(kept)) if kept else np.empty(0, np.int64)
    return [np.setdiff1d(groups, held, assume_unique=True) for groups in members]


def _check_sizes(members: Sequence[np.ndarray], names: Sequence[str], needed: int, classes: Collection[int]) -> None:
    for index in sorted(classes):
        if 0 < len(members[index]) < needed:  # a class without any image is named by its counts
            raise DataError(
                f"class {index} ({names[index]}) has {len(members[index])} different pictures, but each of {needed} "
                f"splits needs one: {SMALL_CLASS_FIX}"
            )
