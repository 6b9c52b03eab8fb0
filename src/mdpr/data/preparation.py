"""From a source and a cut to prepared/: labels first, then every image once, streamed, written in one form."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from mdpr.data.intake import Faults, map_in_order
from mdpr.data.sources import Source
from mdpr.data.sources.source import SourceImage, SourceSplit
from mdpr.data.splits import cut_pool, hold_out_test, planned_counts, shot_group
from mdpr.errors import DataError
from mdpr.images.decoding import quiet_about_large_images, verify_image
from mdpr.params import PrepareParams
from mdpr.progress import track

logger = logging.getLogger(__name__)
Chosen = dict[Split, tuple[SourceSplit, np.ndarray]]


def write_prepared(
    prepared: Path, source: Source, params: PrepareParams, faults: Faults, origin: Origin | None = None
) -> DataCard:
    """Write train, val and test, classes.json and card.json into `prepared`; the same input, the same bytes.

    Raises `DataError` for a class without an image in any split, and for an image that cannot be used unless
    bad ones are skipped: `faults` then has them, and card.json lists them.
    """
    names = [item.name for item in source.classes]
    chosen, validation = choose_rows(source, names, params)
    for name, (split, rows) in chosen.items():
        count_classes(Counter(split.labels_N[rows].tolist()), names, name)
    counts_C: dict[Split, list[int]] = {}
    for name, (split, rows) in chosen.items():
        written: Counter[int] = Counter()
        records = checked_records(split, rows, params.short_side_px, faults)
        write_image_records(
            prepared / f"{name}.parquet", _count(track(records, f"prepare {name}", total=len(rows)), written)
        )
        counts_C[name] = count_classes(written, names, name)
    write_classes(prepared, class_infos(source, counts_C["train"], params))
    if faults.listed:
        logger.warning("%d images or rows are left out: card.json lists them", len(faults.listed))
    card = DataCard(
        # where it lay does not change what it is; of what DVC tracks, `origin` has the commit and the digest as well
        **params.model_dump(exclude={"root", "image_root", "repo", "rev", "path"}),
        validation=validation,
        test="source" if source.test is not None else "share",
        images={name: sum(counts_C[name]) for name in SPLITS},
        images_per_class={name: tuple(counts_C[name]) for name in SPLITS},
        sha256={f"{name}.parquet": sha256(prepared / f"{name}.parquet") for name in SPLITS},
        left_out=tuple(faults.listed),
        origin=origin,
    )
    write_json(prepared / "card.json", card)
    if source.truth is not None:
        write_truth(prepared, source.truth(chosen))
    return card


def choose_rows(source: Source, names: Sequence[str], params: PrepareParams) -> tuple[Chosen, Validation]:
    """Which rows of which split of the source become train, val and test, and where validation came from."""
    pool_N = source.pool.labels_N
    test_rows = np.empty(0, np.int64)
    if source.test is None:
        test_rows = hold_out_test(pool_N, names, params.test_share)
    rest = np.setdiff1d(np.arange(len(pool_N)), test_rows, assume_unique=True)
    cut = cut_pool(pool_N[rest], names, params, with_val=source.val is None)
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


def count_classes(images: Counter[int], names: Sequence[str], split: Split) -> list[int]:
    """Images of each class; `DataError` where there is none at all or none of a class."""
    if not images.total():
        raise DataError(f"{split} has 0 images: the source must bring images for every class")
    counts_C = [images[index] for index in range(len(names))]
    if 0 in counts_C:
        index = counts_C.index(0)
        raise DataError(f"{split}: class {index} ({names[index]}) has no image: add images or drop the class")
    return counts_C


def checked_records(split: SourceSplit, rows: np.ndarray, short_side_px: int, faults: Faults) -> Iterator[ImageRecord]:
    """The images of `rows`, in order, each read, decoded and perhaps scaled on the way, in threads."""

    def check(image: SourceImage) -> ImageRecord | DataError:
        try:
            data = image.read()
            return ImageRecord(verify_image(data, image.where, short_side_px), image.path, image.label)
        except DataError as error:
            return error

    with quiet_about_large_images():
        for outcome in map_in_order(check, split.images(rows)):
            if isinstance(outcome, DataError):
                faults.bad(outcome)
            else:
                yield outcome


def _count(records: Iterable[ImageRecord], written: Counter[int]) -> Iterator[ImageRecord]:
    for record in records:
        written[record.label] += 1
        yield record


def _whole(split: SourceSplit) -> tuple[SourceSplit, np.ndarray]:
    return split, np.flatnonzero(split.labels_N >= 0)
