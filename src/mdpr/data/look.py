"""How a folder would be read as a data set: splits, classes and the text of each, and what would be passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mdpr.data.preparation import arrange
from mdpr.data.sources import Place, Source, open_source
from mdpr.data.sources.cifar import CIFAR10, CIFAR100
from mdpr.data.sources.source import SourceSplit
from mdpr.errors import DataError, printable
from mdpr.params import PrepareParams

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
    yield from _classes(source, template, most_classes)
    yield from place.log.report()
    yield from place.log.left_out[:20]
    try:
        arranged = arrange(source, params)
        yield from arranged.report()
    except DataError as error:
        yield f"prepare would stop: {error}"


def splits_taken(source: Source, params: PrepareParams) -> Iterator[str]:
    """A line per split: how many images the source has for it, or what it is made of."""
    shares = {"val": "none: made of training images", "test": f"none: {params.test_share:.0%} of each class of train"}
    for name, split in _named(source):
        yield f"  {name:6}" + (shares[name] if split is None else f"{_count(split.labels_N):,} images")


def _named(source: Source) -> tuple[tuple[str, SourceSplit | None], ...]:
    return ("train", source.pool), ("val", source.val), ("test", source.test)


def _count(labels_N: np.ndarray) -> int:
    return int((labels_N >= 0).sum())


def _classes(source: Source, template: str, most_classes: int) -> Iterator[str]:
    splits = {name: split for name, split in _named(source) if split is not None}
    count_SC = [
        np.bincount(split.labels_N[split.labels_N >= 0], minlength=len(source.classes)) for split in splits.values()
    ]
    shown = source.classes[:most_classes]
    labels = [printable(item.label or item.name) for item in shown]
    width = max(map(len, ["label", *labels]))
    yield f"{len(source.classes):,} classes, and the text that the text encoder reads for each:"
    yield f"  index  {'label':{width}}  {''.join(f'{name:>8}' for name in splits)}  text"
    for item, label in zip(shown, labels, strict=True):
        counts = "".join(f"{count_C[item.index]:8,}" for count_C in count_SC)
        text = printable(template.replace("{}", item.name))
        yield f"  {item.index:5}  {label:{width}}  {counts}  {text}"
    if len(source.classes) > most_classes:
        yield f"  and {len(source.classes) - most_classes:,} more: --classes {len(source.classes)} shows all"
    yield ""
