"""From a source and a cut to prepared/: labels first, then every image once, streamed, written in one form."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mdpr.artifacts import (
    SPLITS,
    ClassInfo,
    DataCard,
    ImageRecord,
    Origin,
    Split,
    Validation,
    sha256,
    write_classes,
    write_image_records,
    write_json,
)
from mdpr.artifacts.truth import write_truth
from mdpr.data.intake import IntakeLog, map_in_order
from mdpr.data.sources import Source
from mdpr.data.sources.source import IGNORE_INDEX, RelabelledSplit, SourceImage, SourceSplit
from mdpr.data.splits import cut_pool, hold_out_test, planned_counts, shot_group
from mdpr.errors import DataError, printable
from mdpr.images.decoding import Verified, quiet_pillow, verify_image
from mdpr.params import PrepareParams
from mdpr.progress import track

logger = logging.getLogger(__name__)
Chosen = dict[Split, tuple[SourceSplit, np.ndarray]]
SMALL_CLASS_FIX = "add images, or set prepare.small_classes to drop or train_only"


@dataclass(frozen=True)
class Arranged:
    """A source whose splits and classes are those that will be used.

    dropped      label of each class that is too small, with the images it has in the pool
    train_only   indices of classes that have no image in val and test
    """

    source: Source
    dropped: dict[str, int]
    train_only: frozenset[int]

    def report(self, names: Sequence[str]) -> list[str]:
        """A line for each decision about small classes."""
        lines = []
        if self.dropped:
            shown = ", ".join(f"{printable(label)} ({count})" for label, count in list(self.dropped.items())[:10])
            lines.append(f"dropped {len(self.dropped)} small classes, with images: {shown}")
        if self.train_only:
            shown = ", ".join(printable(names[index]) for index in sorted(self.train_only)[:10])
            lines.append(f"{len(self.train_only)} small classes are for training only: {shown}")
        return lines


def write_prepared(
    prepared: Path, source: Source, params: PrepareParams, log: IntakeLog, origin: Origin | None = None
) -> DataCard:
    """Write train, val and test, classes.json and card.json into `prepared`; the same input, the same bytes.

    Raises `DataError` for a class without an image in any split, and for an image that cannot be used unless
    bad ones are skipped: `log` then has them, and card.json lists them.
    """
    arranged = arrange(source, params)
    source = arranged.source
    names = [item.name for item in source.classes]
    chosen, validation = choose_rows(arranged, names, params)
    for name, (split, rows) in chosen.items():
        count_classes(Counter(split.labels_N[rows].tolist()), names, name, arranged.train_only)
    counts_C: dict[Split, list[int]] = {}
    seen: set[str] | None = set() if params.drop_duplicates else None
    for name in reversed(SPLITS) if params.drop_duplicates else SPLITS:  # what is dropped is never of the test set
        split, rows = chosen[name]
        written: Counter[int] = Counter()
        records = track(checked_records(split, rows, params, log, seen), f"prepare {name}", total=len(rows))
        write_image_records(prepared / f"{name}.parquet", _count(records, written))
        counts_C[name] = count_classes(written, names, name, arranged.train_only)
    write_classes(prepared, class_infos(source, counts_C["train"], params))
    card = DataCard(
        # where it lay does not change what it is; of what DVC tracks, `origin` has the commit and the digest as well
        **params.model_dump(exclude={"root", "image_root", "repo", "rev", "path"}),
        hub_rev=params.rev if params.source == "huggingface" else "",
        validation=validation,
        test="source" if source.test is not None else "share",
        images={name: sum(counts_C[name]) for name in SPLITS},
        images_per_class={name: tuple(counts_C[name]) for name in SPLITS},
        sha256={f"{name}.parquet": sha256(prepared / f"{name}.parquet") for name in SPLITS},
        left_out=tuple(log.left_out),
        passed_over=log.passed_over,
        interpreted=log.interpreted,
        dropped_classes=arranged.dropped,
        train_only=tuple(names[index] for index in sorted(arranged.train_only)),
        origin=origin,
    )
    write_json(prepared / "card.json", card)
    if source.truth is not None:
        write_truth(prepared, source.truth(chosen))
    for line in [*log.report(), *arranged.report(names)]:
        logger.warning("%s", line)
    return card


def arrange(source: Source, params: PrepareParams) -> Arranged:
    """Decide which splits and classes are used; labels and names only.

    Raises `DataError` for a small class that nothing was decided about, and if fewer than 2 classes are left.
    """
    if params.test_from == "val" and source.val is None:
        raise DataError("prepare.test_from = val: the source has no validation split: set it to share")
    if params.test_from == "val":
        source = replace(source, test=source.val, val=None)
    elif params.test_from == "share":
        source = replace(source, test=None)
    pool_C, small = _counts(source.pool, source), _small_classes(source, params)
    if params.small_classes == "refuse":
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


def _small_classes(source: Source, params: PrepareParams) -> list[int]:
    """Classes with fewer images than are wanted or than the splits need, or without one in a split of the source's."""
    missing = [split for split in (source.val, source.test) if split is None]
    small_C = _counts(source.pool, source) < max(params.min_images_per_class, 1 + len(missing))
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


def checked_records(
    split: SourceSplit, rows: np.ndarray, params: PrepareParams, log: IntakeLog, seen: set[str] | None = None
) -> Iterator[ImageRecord]:
    """The images of `rows`, in order, each read, decoded and perhaps changed on the way, in threads.

    With `seen`, the digests of the pixels that came before, an image whose pixels are among them is left out.
    """

    def check(image: SourceImage) -> tuple[SourceImage, Verified] | DataError:
        try:
            return image, verify_image(
                image.read(), image.where, params.short_side_px, params.background, with_digest=seen is not None
            )
        except DataError as error:
            return error

    with quiet_pillow():
        for outcome in map_in_order(check, split.images(rows)):
            if isinstance(outcome, DataError):
                log.bad(outcome)
                continue
            image, verified = outcome
            if seen is not None and verified.digest is not None:
                if verified.digest in seen:
                    log.pass_over("images that came before (drop_duplicates)", image.path)
                    continue
                seen.add(verified.digest)
            for note in verified.notes:
                log.interpret(note, image.path)
            yield ImageRecord(verified.data, image.path, image.label)


def _count(records: Iterable[ImageRecord], written: Counter[int]) -> Iterator[ImageRecord]:
    for record in records:
        written[record.label] += 1
        yield record


def _whole(split: SourceSplit) -> tuple[SourceSplit, np.ndarray]:
    return split, np.flatnonzero(split.labels_N >= 0)
