"""Where images come from: one short function per source, listed in SOURCES.

A source gives its class list and its splits: the pool that training is cut from, and a validation and a test
split if it has them. A new source is a function of its place, and a line in the table.
"""

from __future__ import annotations

from collections.abc import Callable

from mdpr.data.class_list import check_names
from mdpr.data.sources.cifar import cifar10_source, cifar100_source
from mdpr.data.sources.emblems import emblems_source
from mdpr.data.sources.folders import folder_source
from mdpr.data.sources.hub import hub_source
from mdpr.data.sources.source import Place, Source
from mdpr.data.sources.tabular import csv_source, imagenet_lt_source, inat2018_source, parquet_source, places_lt_source
from mdpr.errors import DataError

__all__ = ["SOURCES", "Place", "Source", "open_source"]

SOURCES: dict[str, Callable[[Place], Source]] = {
    "embedded": parquet_source,
    "parquet": parquet_source,
    "folder": folder_source,
    "csv": csv_source,
    "cifar10": cifar10_source,
    "cifar100": cifar100_source,
    "imagenet_lt": imagenet_lt_source,
    "places_lt": places_lt_source,
    "inat2018": inat2018_source,
    "huggingface": hub_source,
    "emblems": emblems_source,
}


def open_source(kind: str, place: Place) -> Source:
    """The source `kind` at `place`, labels read and checked, images not yet.

    Raises `DataError` that names the file (and row) at fault; of several rows the first, and how many there are.
    """
    for key, folder in (("root", place.root), ("image_root", place.image_root)):
        if not folder.is_dir():
            raise DataError(f"prepare.{key} = {folder}: there is no such folder")
    with place.log.all_faults():
        source = SOURCES[kind](place)
    check_names(source.classes, place.root)
    if len(source.classes) < 2:
        raise DataError(f"{place.root} has {len(source.classes)} class, at least 2 are needed")
    return source
