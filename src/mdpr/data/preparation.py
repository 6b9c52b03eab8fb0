"""From a source and its splits to prepared/: labels first, then every image once, streamed, written in one form.

Splits that a source brings, and cuts by the order of images, follow from the labels. For a cut by content the images of
the pool are read before it; they wait for their split in a file without a name.

`look` shows beforehand how a folder would be read. C classes, N images of a split, P of the pool.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
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
from mdpr.data.sources import Place, Source, open_source
from mdpr.data.sources.cifar import CIFAR10, CIFAR100
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
# A file in the root, and the source that reads it.
SIGNS = {
    "images.csv": "csv",
    "pool.parquet": "parquet",
    "ImageNet_LT_train.txt": "imagenet_lt",
    "Places_LT_train.txt": "places_lt",
    "iNaturalist18_train.txt": "inat2018",
    **dict.fromkeys((CIFAR10.name, CIFAR10.folder), "cifar10"),
    **dict.fromkeys((CIFAR100.name, CIFAR100.folder), "cifar100"),
}


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
    """The pictures of each split, read one after the other; `alike`: groups of the pool, if it was cut by content."""

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

    Raises `DataError` for a class without an image in any split, and for all images that cannot be used unless
    bad ones are skipped: `log` then has them, and card.json lists them.
    """
    arranged = arrange(source, params)
    by_content = cuts_by_content(arranged.source, params)
    with log.all_faults(), ThreadPoolExecutor(1) as thread:
        if by_content:
            parts = parts_by_content(prepared, source, arranged, params, log, previous)
        else:
            parts = parts_by_order(arranged, params, log)
        arranged, source, names = parts.arranged, parts.arranged.source, parts.arranged.names
        count_of, pictures, digests, seen = {}, {}, {}, set[str]()
        for name in reversed(SPLITS) if params.drop_duplicates else SPLITS:  # what is dropped is never of the test set
            file = prepared / f"{name}.parquet"
            count_of[name], pictures[name] = write_split(file, parts.pictures[name], seen, log)
            digests[file.name] = thread.submit(sha256, file)
        counts_C = {name: count_classes(count_of[name], names, name, arranged.train_only) for name in SPLITS}
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
    source, names, train_only = arranged.source, arranged.names, arranged.train_only
    pool_N = source.pool.labels_N
    test_rows = np.empty(0, np.int64)
    if source.test is None:
        test_rows = hold_out_test(pool_N, names, params.test_share, train_only)
    rest = np.setdiff1d(np.arange(len(pool_N)), test_rows, assume_unique=True)
    cut = cut_pool(pool_N[rest], names, params, with_val=source.val is None, train_only=train_only)
    of_pool: dict[Split, np.ndarray] = {"train": rest[cut.train], "val": rest[cut.val], "test": test_rows}
    chosen: Chosen = {name: (source.pool, rows) for name, rows in of_pool.items()}
    chosen |= {name: (split, _used(split)) for name, split in source.splits.items() if name != "train"}
    pictures = {name: _read(name, split, rows, arranged, params, log) for name, (split, rows) in chosen.items()}
    return Parts(arranged, pictures, cut.validation, chosen)


def parts_by_content(
    prepared: Path, source: Source, arranged: Arranged, params: PrepareParams, log: IntakeLog, previous: Previous | None
) -> Parts:
    """Splits that follow from the pictures; what the source brings itself stays as it is.

    A class that has enough images, and too few different ones, is small: `arranged` is decided again with that.
    """
    rows = _used(source.pool)
    pool = Pool(_read(None, source.pool, rows, arranged, params, log), prepared)
    if log.stops:  # a cut of what is left is for nothing: the other splits are read for their faults
        for name, split in arranged.source.splits.items():
            if name != "train":
                deque(_read(name, split, _used(split), arranged, params, log), maxlen=0)
        log.stop_if_bad()
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
    for name, split in source.splits.items():
        if name != "train":
            chosen[name] = split, _used(split)
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
        for name, split in source.splits.items():
            count_classes(Counter(split.labels_N[_used(split)].tolist()), [item.name for item in source.classes], name)
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
    return np.bincount(split.labels_N[_used(split)], minlength=len(source.classes))


def _small_classes(source: Source, params: PrepareParams, different_C: Sequence[int] | None) -> list[int]:
    """Classes with fewer images than are wanted or than the splits need, or without one in a split of the source's."""
    cut_from_pool = 1 + (source.val is None) + (source.test is None)
    pool_C = _counts(source.pool, source)
    small_C = pool_C < max(params.min_images_per_class, cut_from_pool)
    small_C |= (pool_C if different_C is None else np.array(different_C)) < cut_from_pool
    for name, split in source.splits.items():
        if name != "train":
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


def class_infos(source: Source, train_C: Sequence[int], params: PrepareParams) -> list[ClassInfo]:
    """The classes with their training images and shot group, by the real counts or by those of another ratio."""
    judged_C = train_C
    if params.shots_from is not None:
        judged_C = planned_counts(params, _counts(source.pool, source), params.shots_from)
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


def _used(split: SourceSplit) -> np.ndarray:
    """The rows that have a label, int64, increasing."""
    return np.flatnonzero(split.labels_N >= 0)


def source_of(root: Path) -> str:
    """The source that fits the files in `root`; folder if none of them is a list or an archive."""
    return next((source for name, source in SIGNS.items() if (root / name).exists()), "folder")


def look(params: PrepareParams, template: str, most_classes: int) -> Iterator[str]:
    """Lines about the source that `params` name; labels only, no image is opened.

    `template` is the prompt into which class names are put ("a photo of a {}."), `most_classes` the number of classes
    shown. Faulty rows are counted. Raises `DataError` for a source that cannot be read.
    """
    place = Place.of(params.model_copy(update={"skip_bad": True}))
    source = open_source(params.source, place)
    yield f"{printable(place.root)}: read as prepare.source = {params.source}"
    yield from splits_taken(source, params)
    yield ""
    yield from _class_lines(source, template, most_classes)
    yield from place.log.report()
    yield from place.log.left_out[:20]
    if place.log.left_out and not params.skip_bad:
        yield "prepare would stop for these: correct them, or set prepare.skip_bad: true"
    try:
        yield from arrange(source, params).report()
    except DataError as error:
        yield f"prepare would stop: {error}"


def splits_taken(source: Source, params: PrepareParams) -> Iterator[str]:
    """A line per split: how many images the source has for it, or what it is made of."""
    made_of = {"val": "none: made of training images", "test": f"none: {params.test_share:.0%} of each class of train"}
    for name in SPLITS:
        split = source.splits.get(name)
        yield f"  {name:6}" + (made_of[name] if split is None else f"{len(_used(split)):,} images")


def _class_lines(source: Source, template: str, most_classes: int) -> Iterator[str]:
    count_SC = [_counts(split, source) for split in source.splits.values()]
    shown = source.classes[:most_classes]
    labels = [printable(item.label or item.name) for item in shown]
    width = max(map(len, ["label", *labels]))
    yield f"{len(source.classes):,} classes, and the text that the text encoder reads for each:"
    yield f"  index  {'label':{width}}  {''.join(f'{name:>8}' for name in source.splits)}  text"
    for item, label in zip(shown, labels, strict=True):
        counts = "".join(f"{count_C[item.index]:8,}" for count_C in count_SC)
        text = printable(template.replace("{}", item.name))
        yield f"  {item.index:5}  {label:{width}}  {counts}  {text}"
    if len(source.classes) > most_classes:
        yield f"  and {len(source.classes) - most_classes:,} more: --classes {len(source.classes)} shows all"
    yield ""
