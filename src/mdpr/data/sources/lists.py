"""The long-tailed benchmarks that are published as lists: a line an image, its path and its label."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mdpr.data.class_list import ClassName, LabelReader, read_class_list, shipped_class_list
from mdpr.data.sources.source import Place, Source
from mdpr.data.sources.tables import ListedImage, listed_split
from mdpr.data.splits import FileSplit
from mdpr.errors import DataError


@dataclass(frozen=True)
class Lists:
    """The list files of a benchmark as they are published; `val` is None where it has no list of its own."""

    train: str
    val: str | None
    test: str
    class_list: Callable[[Path], tuple[ClassName, ...]]


def imagenet_lt_source(place: Place) -> Source:
    """ImageNet_LT_train.txt, _val.txt and _test.txt (Liu et al., CVPR 2019), and ImageNet's train/ and val/."""
    names = ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt")
    return _lists_source(place, Lists(*names, lambda _: shipped_class_list("imagenet")))


def places_lt_source(place: Place) -> Source:
    """Places_LT_train.txt, _val.txt and _test.txt (Liu et al., CVPR 2019), and the images of Places365."""
    names = ("Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt")
    return _lists_source(place, Lists(*names, lambda _: shipped_class_list("places365")))


def inat2018_source(place: Place) -> Source:
    """iNaturalist18_train.txt and _val.txt (its val is the test set, as usual), and categories.json of the set."""
    return _lists_source(place, Lists("iNaturalist18_train.txt", None, "iNaturalist18_val.txt", _categories))


def _lists_source(place: Place, lists: Lists) -> Source:
    own = place.root / "classes.json"
    classes = read_class_list(own) if own.is_file() else lists.class_list(place.root)
    return Source(
        classes=classes,
        pool=_listed(place, lists.train, classes),
        val=_listed(place, lists.val, classes) if lists.val else None,
        test=_listed(place, lists.test, classes),
    )


def _listed(place: Place, name: str, classes: tuple[ClassName, ...]) -> FileSplit:
    file = place.root / name
    rows = list(_rows(file))
    return listed_split(place, rows, "train", LabelReader(classes, [row.label for row in rows], file))


def _rows(file: Path) -> Iterator[ListedImage]:
    """`path label` a line; the label is the last word, so that paths may hold spaces."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # Windows line ends are already translated
    except FileNotFoundError:
        raise DataError(f"{file} is missing: put the benchmark's list files into prepare.root") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not label.isdecimal():
            raise DataError(f"{file} line {number}: {line!r} must be a path, a space and a label (a number)")
        yield ListedImage(number, path.strip(), label, None)


def _categories(root: Path) -> tuple[ClassName, ...]:
    """The species names of iNaturalist 2018's categories.json: [{"id": 0, "name": "..."}, ...]."""
    file = root / "categories.json"
    try:
        names = {int(item["id"]): str(item["name"]) for item in json.loads(file.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        raise DataError(f"{file} is missing: it comes with iNaturalist 2018 and names the classes") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is not a list of objects with id and name: {error}") from None
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{file}: ids must run 0, 1, 2, ... without gaps")
    return tuple(ClassName(index=index, name=names[index]) for index in sorted(names))
