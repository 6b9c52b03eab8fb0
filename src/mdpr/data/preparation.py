"""From a source and a cut to prepared/: every image is opened once, streamed, and written in one form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from mdpr.artifacts import (
    SPLITS,
    ClassInfo,
    DataCard,
    ImageRecord,
    Split,
    sha256,
    write_classes,
    write_image_records,
    write_json,
)
from mdpr.config import PrepareParams
from mdpr.data.images import decode_image, quiet_about_large_images
from mdpr.data.long_tail import cut_pool, shot_group
from mdpr.data.sources import Source
from mdpr.data.splits import SourceSplit
from mdpr.errors import DataError
from mdpr.progress import track

CHECKED_TOGETHER = 256  # images held while threads open them


def write_prepared(prepared: Path, source: Source, params: PrepareParams) -> DataCard:
    """Write train, val and test, classes.json and card.json into `prepared`; the same input, the same bytes.

    Raises `DataError` for a class without an image in any split and for an image that cannot be opened.
    """
    names = [item.name for item in source.classes]
    cut = cut_pool(source.pool.labels_N, names, params, with_val=source.val is None)
    chosen: dict[Split, tuple[SourceSplit, np.ndarray]] = {
        "train": (source.pool, cut.train),
        "val": _whole(source.val) if source.val is not None else (source.pool, cut.val),
        "test": _whole(source.test),
    }
    counts_C: dict[Split, list[int]] = {
        name: count_classes(split.labels_N[rows], names, name) for name, (split, rows) in chosen.items()
    }
    for name, (split, rows) in chosen.items():
        records = track(checked_records(split, rows), f"prepare {name}", total=len(rows))
        write_image_records(prepared / f"{name}.parquet", records)
    write_classes(
        prepared,
        [
            ClassInfo(
                **item.model_dump(),
                train_images=count,
                shot=shot_group(count, params.many_above, params.few_below),
            )
            for item, count in zip(source.classes, counts_C["train"], strict=True)
        ],
    )
    card = DataCard(
        **params.model_dump(exclude={"root"}),  # where it lay does not change what it is
        validation=cut.validation,
        images={name: sum(counts_C[name]) for name in SPLITS},
        images_per_class={name: tuple(counts_C[name]) for name in SPLITS},
        sha256={f"{name}.parquet": sha256(prepared / f"{name}.parquet") for name in SPLITS},
    )
    write_json(prepared / "card.json", card)
    return card


def count_classes(labels_N: np.ndarray, names: Sequence[str], split: Split) -> list[int]:
    """Images of each class; `DataError` where there is none at all or none of a class."""
    if not labels_N.size:
        raise DataError(f"{split} has 0 images: the source must bring images for every class")
    counts_C = np.bincount(labels_N, minlength=len(names)).tolist()
    if 0 in counts_C:
        index = counts_C.index(0)
        raise DataError(f"{split}: class {index} ({names[index]}) has no image: add images or drop the class")
    return counts_C


def checked_records(split: SourceSplit, rows: np.ndarray) -> Iterator[ImageRecord]:
    """The images of `rows`, each opened on the way; in threads, as Pillow decodes outside the lock."""
    records = split.records(rows)
    with quiet_about_large_images(), ThreadPoolExecutor() as threads:
        while group := list(islice(records, CHECKED_TOGETHER)):
            for _ in threads.map(lambda pair: decode_image(pair[0].image, pair[1]).close(), group):
                pass
            yield from (record for record, _ in group)


def _whole(split: SourceSplit) -> tuple[SourceSplit, np.ndarray]:
    return split, np.arange(len(split.labels_N))
