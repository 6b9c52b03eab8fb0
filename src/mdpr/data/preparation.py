"""From a source and its splits to prepared/: labels first, then every image once, streamed, written in one form.

Splits that a source brings, and cuts by the order of images, follow from the labels. For a cut by content the images of
the pool are read before it; they wait for their split in a file without a name.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mdpr.artifacts import (
    SPLITS,
    Alike,
    ClassInfo,
    DataCard,
    Origin,
    Split,
    StoreOrigin,
    Validation,
    sha256,
    write_classes,
    write_json,
    write_pictures,
)
from mdpr.artifacts.truth import write_truth
from mdpr.data.intake import IntakeLog
from mdpr.data.pool import Picture, Pool, read_pictures_of, write_split
from mdpr.data.sources import Source
from mdpr.data.sources.source import IGNORE_INDEX, RelabelledSplit, SourceSplit
from mdpr.data.splits import SMALL_CLASS_FIX, cut_pool, hold_out_test, planned_counts, shot_group
from mdpr.data.stable_splits import Groups, Previous, cut_by_content
from mdpr.errors import DataError, printable
from mdpr.params import PrepareParams
from mdpr.progress import track

logger = logging.getLogger(__name__)
Chosen = dict[Split, tuple[SourceSplit, np.ndarray]]
# Their cuts are defined by the order of their images, or figures were published with such a cut.
CUT_BY_ORDER = frozenset({"embedded", "cifar10", "cifar100", "imagenet_lt", "places_lt", "inat2018", "emblems"})


@dataclass(frozen=True)
class Arranged:
    """A source whose splits and classes are those that will be used.

    dropped      label of each class that is too small, with the images it has in the pool
    train_only   indices of classes that have no image in val and test
    """

    source: Source
    dropped: dict[str, int]
    train_only: frozenset[int]

    @property
    def names(self) -> list[str]:
        return [item.name for item in self.source.classes]

    def report(self) -> list[str]:
        """A line for each decision about small classes."""
        lines = []
        if self.dropped:
            shown = ", ".join(f"{printable(label)} ({count})" for label, count in list(self.dropped.items())[:10])
            lines.append(f"dropped {len(self.dropped)} small classes, with images: {shown}")
        if self.train_only:
            shown = ", ".join(printable(self.names[index]) for index in sorted(self.train_only)[:10])
            lines.append(f"{len(self.train_only)} small classes are for training only: {shown}")
        return lines


@dataclass(frozen=True)
class Parts:
    """The pictures of each split, read as they are asked for; `alike`: groups of the pool, if it was cut by content."""

    arranged: Arranged
    pictures: dict[Split, Iterator[Picture]]
    validation: Validation
    chosen: Chosen
    alike: Alike | None = None


def write_prepared(
    prepared: Path,
    source: Source,
    params: PrepareParams,
    log: IntakeLog,
    origin: Origin | StoreOrigin | None = None,
    previous: Previous | None = None,
) -> DataCard:
    """Write train, val and test, classes.json, pictures.parquet and card.json into `prepared`; same input, same bytes.

    Raises `DataError` for a class without an image in any split, and for an image that cannot be used unless
    bad ones are skipped: `log` then has them, and card.json lists them.
    """
    arranged = arrange(source, params)
    by_content = cuts_by_content(arranged.source, params)
    if by_content:
        parts = parts_by_content(prepared, source, arranged, params, log, previous)
    else:
        parts = parts_by_order(arranged, params, log)
    arranged, source, names = parts.arranged, parts.arranged.source, parts.arranged.names
    written, digests, seen = {}, {}, set[str]()
    with ThreadPoolExecutor(1) as thread:
        for name in reversed(SPLITS) if params.drop_duplicates else SPLITS:  # what is dropped is never of the test set
            file = prepared / f"{name}.parquet"
            written[name] = write_split(file, parts.pictures[name], seen, log)
            digests[file.name] = thread.submit(sha256, file)
    counts_C = {name: count_classes(written[name].count_of_class, names, name, arranged.train_only) for name in SPLITS}
    pictures = {name: written[name].pictures for name in SPLITS}
    write_pictures(prepared, pictures)
    write_classes(prepared, class_infos(source, counts_C["train"], params))
    card = DataCard(
        # where it lay does not change what it is; of what DVC tracks or a store keeps, `origin` has a digest as well
        **params.model_dump(exclude={"root", "image_root", "repo", "rev", "path", "previous", "cut_by"}),
        hub_rev=source.revision,
        cut_by="content" if by_content else "order",
        validation=parts.validation,
        test="source" if source.test is not None else "share",
        images={name: sum(counts_C[name]) for name in SPLITS},
        images_per_class={name: tuple(counts_C[name]) for name in SPLITS},
        sha256={f"{name}.parquet": digests[f"{name}.parquet"].result() for name in SPLITS},
        left_out=tuple(log.left_out),
        passed_over=log.passed_over,
        interpreted=log.interpreted,
        dropped_classes=arranged.dropped,
        train_only=tuple(names[index] for index in sorted(arranged.train_only)),
        origin=origin,
        alike=parts.alike,
        since=previous.compare(pictures) if previous else None,
    )
    write_json(prepared / "card.json", card)
    if source.truth is not None:
        write_truth(prepared, source.truth(parts.chosen))
    for line in arranged.report():
        logger.warning("%s", line)
    if card.since:
        logger.info("%s", card.since.in_words())
    return card


def cuts_by_content(source: Source, params: PrepareParams) -> bool:
    """Whether images of the pool are assigned to splits by what they show."""
    if source.val is not None and source.test is not None and params.profile == "natural":
        return False  # nothing is cut
    return params.cut_by == "content" or (params.cut_by == "auto" and params.source not in CUT_BY_ORDER)


def parts_by_order(arranged: Arranged, params: PrepareParams, log: IntakeLog) -> Parts:
    """Splits that follow from labels and the order of images."""
    chosen, validation = choose_rows(arranged, arranged.names, params)
    pictures = {name: _read(name, split, rows, arranged, params, log) for name, (split, rows) in chosen.items()}
    return Parts(arranged, pictures, validation, chosen)


def parts_by_content(
    prepared: Path, source: Source, arranged: Arranged, params: PrepareParams, log: IntakeLog, previous: Previous | None
) -> Parts:
    """Splits that follow from the pictures; what the source brings itself stays as it is.

    A class that has enough images, and too few different ones, is small: `arranged` is decided again with that.
    """
    pool = Pool(_read(None, *_whole(arranged.source.pool), arranged, params, log), prepared)
    groups = Groups.of(pool.pictures, params.near_duplicate_bits, previous.pictures if previous else None)
    different_C = [len(members) for members in groups.members(source.pool.labels_N[pool.rows_P], len(source.classes))]
    arranged = arrange(source, params, different_C)
    source = arranged.source
    labels_P = source.pool.labels_N[pool.rows_P]
    cut, validation = cut_by_content(
        labels_P,
        arranged.names,
        groups,
        params,
        with_val=source.val is None,
        with_test=source.test is None,
        train_only=arranged.train_only,
    )
    chosen: Chosen = {name: (source.pool, pool.rows_P[places]) for name, places in cut.items()}
    pictures = {name: pool.read(places, labels_P) for name, places in cut.items()}
    own: dict[Split, SourceSplit | None] = {"val": source.val, "test": source.test}
    for name, split in own.items():
        if split is not None:
            chosen[name] = _whole(split)
            pictures[name] = _read(name, *chosen[name], arranged, params, log)
    return Parts(arranged, pictures, validation, chosen, groups.alike())


def _read(
    name: Split | None, split: SourceSplit, rows: np.ndarray, arranged: Arranged, params: PrepareParams, log: IntakeLog
) -> Iterator[Picture]:
    """The pictures of `rows`, for a split or for the pool; raises `DataError` at once if a split lacks a class."""
    if name:
        count_classes(Counter(split.labels_N[rows].tolist()), arranged.names, name, arranged.train_only)
    return track(read_pictures_of(split, rows, params, log), f"read {name or 'pool'}", total=len(rows))


def arrange(source: Source, params: PrepareParams, different_C: Sequence[int] | None = None) -> Arranged:
    """Decide which splits and classes are used, from labels and names.

    `different_C`: how many different pictures the pool has of each class, once they were read.
    Raises `DataError` for a small class that nothing was decided about, and if fewer than 2 classes are left.
    """
    if params.test_from == "val" and source.val is None:
        raise DataError("prepare.test_from = val: the source has no validation split: set it to share")
    if params.test_from == "val":
        source = replace(source, test=source.val, val=None)
    elif params.test_from == "share":
        source = replace(source, test=None)
    pool_C, small = _counts(source.pool, source), _small_classes(source, params, different_C)
    if params.small_classes == "refuse":
        own: dict[Split, SourceSplit | None] = {"train": source.pool, "val": source.val, "test": source.test}
        for name, split in own.items():
            if split is not None:
                count_classes(
                    Counter(split.labels_N[split.labels_N >= 0].tolist()), [item.name for item in source.classes], name
                )
        for index in small:
            if pool_C[index] < params.min_images_per_class:
                raise DataError(
                    f"class {index} ({source.classes[index].name}) has {pool_C[index]} images, fewer than "
                    f"prepare.min_images_per_class = {params.min_images_per_class}: {SMALL_CLASS_FIX}"
                )
        return Arranged(source, {}, frozenset())
    drop = {index for index in small if params.small_classes == "drop" or pool_C[index] == 0}
    kept = [index for index in range(len(source.classes)) if index not in drop]
    if len(kept) < 2:
        raise DataError(f"{len(kept)} of {len(source.classes)} classes are left: lower prepare.min_images_per_class")
    dropped = {source.classes[index].label or source.classes[index].name: int(pool_C[index]) for index in sorted(drop)}
    train_only = frozenset(kept.index(index) for index in small if index not in drop)
    return Arranged(_keep_classes(source, kept) if drop else source, dropped, train_only)


def _counts(split: SourceSplit, source: Source) -> np.ndarray:
    """Images of each class, int64 (C,)."""
    return np.bincount(split.labels_N[split.labels_N >= 0], minlength=len(source.classes))


def _small_classes(source: Source, params: PrepareParams, different_C: Sequence[int] | None) -> list[int]:
    """Classes with fewer images than are wanted or than the splits need, or without one in a split of the source's."""
    missing = [split for split in (source.val, source.test) if split is None]
    pool_C = _counts(source.pool, source)
    small_C = pool_C < max(params.min_images_per_class, 1 + len(missing))
    small_C |= (pool_C if different_C is None else np.array(different_C)) < 1 + len(missing)
    for split in (source.val, source.test):
        if split is not None:
            small_C |= _counts(split, source) == 0
    return np.flatnonzero(small_C).tolist()


def _keep_classes(source: Source, kept: Sequence[int]) -> Source:
    """The source with the classes `kept`, numbered anew."""
    index_C = np.full(len(source.classes) + 1, IGNORE_INDEX)  # the last one is that of rows without a label
    index_C[kept] = np.arange(len(kept))

    def relabelled(split: SourceSplit | None) -> SourceSplit | None:
        return None if split is None else RelabelledSplit(split, index_C[split.labels_N])

    classes = tuple(source.classes[old].model_copy(update={"index": new}) for new, old in enumerate(kept))
    pool = RelabelledSplit(source.pool, index_C[source.pool.labels_N])
    return replace(source, classes=classes, pool=pool, val=relabelled(source.val), test=relabelled(source.test))


def choose_rows(arranged: Arranged, names: Sequence[str], params: PrepareParams) -> tuple[Chosen, Validation]:
    """The rows of the source's splits that become train, val and test, and where validation came from."""
    source = arranged.source
    pool_N = source.pool.labels_N
    test_rows = np.empty(0, np.int64)
    if source.test is None:
        test_rows = hold_out_test(pool_N, names, params.test_share, arranged.train_only)
    rest = np.setdiff1d(np.arange(len(pool_N)), test_rows, assume_unique=True)
    cut = cut_pool(pool_N[rest], names, params, with_val=source.val is None, train_only=arranged.train_only)
    chosen: Chosen = {
        "train": (source.pool, rest[cut.train]),
        "val": _whole(source.val) if source.val is not None else (source.pool, rest[cut.val]),
        "test": _whole(source.test) if source.test is not None else (source.pool, test_rows),
    }
    return chosen, cut.validation


def class_infos(source: Source, train_C: Sequence[int], params: PrepareParams) -> list[ClassInfo]:
    """The classes with their training images and shot group, by the real counts or by those of another ratio."""
    judged_C = train_C
    if params.shots_from is not None:
        labels_N = source.pool.labels_N
        pool_C = np.bincount(labels_N[labels_N >= 0], minlength=len(source.classes))
        judged_C = planned_counts(params, pool_C, params.shots_from)
    return [
        ClassInfo(**item.model_dump(), train_images=count, shot=shot_group(judged, params.many_above, params.few_below))
        for item, count, judged in zip(source.classes, train_C, judged_C, strict=True)
    ]


def count_classes(
    images: Counter[int], names: Sequence[str], split: Split, train_only: frozenset[int] = frozenset()
) -> list[int]:
    """Images of each class; `DataError` if there is none at all or none of a class that is not only for training."""
    if not images.total():
        raise DataError(f"{split} has 0 images: the source must bring images for every class")
    counts_C = [images[index] for index in range(len(names))]
    for index, count in enumerate(counts_C):
        if not count and (split == "train" or index not in train_only):
            raise DataError(f"{split}: class {index} ({names[index]}) has no image: {SMALL_CLASS_FIX}")
    return counts_C


def _whole(split: SourceSplit) -> tuple[SourceSplit, np.ndarray]:
    return split, np.flatnonzero(split.labels_N >= 0)
