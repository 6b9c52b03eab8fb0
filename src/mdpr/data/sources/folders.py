"""One folder per class."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mdpr.artifacts import SPLITS, Split
from mdpr.data.class_list import NAME_FILES, name_labels
from mdpr.data.intake import Links
from mdpr.data.sources.source import FileSplit, Place, Source
from mdpr.errors import DataError, printable
from mdpr.images.decoding import IMAGE_SUFFIXES, is_image, utf8_name

# How else people call the folders of splits, and trash, previews and metadata that programs leave in folders.
SPLIT_NAMES = re.compile(
    r"(train|trn|val|valid|validation|dev|eval|evaluation|test|tst)(ing)?([ _-]?(set|data|split))?", re.I
)
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "__macosx", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "system volume information"}
)
UNREADABLE_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".psd"})
BESIDE_SPLITS = "files or folders beside the splits"
NO_SUFFIX = "files without a suffix"

logger = logging.getLogger(__name__)


def folder_source(place: Place) -> Source:
    """train/CLASS/*.jpg, with test/ and val/ if there are any; or CLASS/*.jpg in the root itself.

    Classes are the folders, sorted by their names (NFC). Images may lie deeper inside a class folder;
    `prepare.class_depth` makes another folder below the split the class. Hidden folders and those of operating systems
    are passed over, links out of the root are refused.
    Raises `DataError` for folders that could be read in two ways.
    """
    root, walk = place.root, Walk(place)
    folders = walk.split_folders()
    images = {split: walk.images(split, folder) for split, folder in folders.items()}
    labels = sorted({label for label, _ in images["train"]} | walk.empty_classes("train"))
    if not labels:
        raise DataError(f"{folders['train']} holds no folders: put each class's images into a folder of its name")
    walk.check_depth(labels)
    classes = name_labels(labels, folders["train"], place.params.class_name_style, root)
    index = {label: number for number, label in enumerate(labels)}
    splits = {split: walk.split(split, found, index) for split, found in images.items()}
    return Source(classes, splits["train"], splits.get("val"), splits.get("test"))


@dataclass
class Walk:
    """One pass over the folders of a source. Paths are text, as they are found below the root."""

    place: Place
    linked: set[str] = field(default_factory=set)  # real paths of the folders that links led to
    seen: dict[str, set[str]] = field(default_factory=dict)  # split -> its top folders
    below: dict[str, set[str]] = field(default_factory=dict)  # top folder of train -> the folders in it
    top: list[os.DirEntry[str]] = field(default_factory=list)  # of the root
    direct: set[str] = field(default_factory=set)  # top folders of train that hold images themselves

    def __post_init__(self) -> None:
        self.root, self.log, self.depth = self.place.root, self.place.log, self.place.params.class_depth
        self._links = Links(self.root, follow=self.place.params.follow_links)

    def split_folders(self) -> dict[Split, Path]:
        """The folder of each split; the root itself is train if there are no splits."""
        self.top = entries = self._entries(self.root)
        names = [entry.name for entry in entries if self._is_folder(entry)]
        found: dict[Split, Path] = {split: self.root / split for split in SPLITS if split in names}
        for name in names:
            if name not in SPLITS and SPLIT_NAMES.fullmatch(name):
                raise DataError(
                    f"{self.root / name} is no split: rename it to train, val or test; if it is a class, give it "
                    "another name, or list the images in a table (prepare.source = csv)"
                )
        if not found:
            return {"train": self.root}
        if "train" not in found:
            name = next(iter(found))
            raise DataError(
                f"{self.root} has a folder {name} but no folder train: add train/CLASS/*.jpg, or rename {name} if it "
                "is a class"
            )
        for entry in entries:
            if entry.name not in (*found, *NAME_FILES):
                self.log.pass_over(BESIDE_SPLITS, entry.path)
        if not self.place.reads_test:
            found.pop("test", None)
        return found

    def images(self, split: Split, folder: Path) -> list[tuple[str, str]]:
        """Label and path of each image of a split, sorted by path."""
        self.seen[split] = set()
        found: list[tuple[str, str]] = []
        loose: list[str] = []
        for entry in self.top if folder == self.root else self._entries(folder):
            if self._is_folder(entry):
                name = _label(entry.name, folder)
                if name in self.seen[split]:
                    logger.warning("%s: several folders have the name %s: they are one class", folder, printable(name))
                self.seen[split].add(name)
                inside = list(self._files(entry.path, entry.is_symlink()))
                found += [(self._class_of(path, folder), path) for path in inside]
                if split == "train":
                    self._remember(name, [_steps(path, folder) for path in inside])
            elif entry.name not in NAME_FILES and self._is_image(entry):
                loose.append(entry.path)
        if folder != self.root and not self.seen[split] and loose:
            without = "; or set prepare.test_from to share" if split == "test" else ""
            raise DataError(
                f"{folder} holds images but no class folders, and {split} is the name of a split: sort them into class "
                f"folders, or rename it if {split} is a class{without}"
            )
        for path in loose:
            self.log.pass_over("images outside the class folders", path)
        return sorted(found, key=lambda item: item[1].split(os.sep))

    def empty_classes(self, split: Split) -> set[str]:
        """Class folders of a split that hold no image; deeper classes are known by their images only."""
        return self.seen[split] if self.depth == 1 else set()

    def split(self, split: Split, found: Sequence[tuple[str, str]], index: dict[str, int]) -> FileSplit:
        """Raises `DataError` for a class that train does not have."""
        for label in sorted({label for label, _ in found} | self.empty_classes(split)):
            if label not in index:
                raise DataError(
                    f"{self.root / split / printable(label)} is a class that train does not have: add it or remove it"
                )
        files = [os.sep.join(_steps(path, self.root)) for _, path in found]
        labels_N = np.array([index[label] for label, _ in found], np.int64)
        return FileSplit(self.root, files, labels_N, follow_links=self.place.params.follow_links)

    def check_depth(self, labels: Sequence[str]) -> None:
        """Raises `DataError` if all classes hold just the same folders, or splits: either could be the classes.

        Also for one class that holds several folders and no images.
        """
        if self.depth == 1 and len(labels) == 1 and not self.direct and len(inner := self.below[labels[0]]) > 1:
            shown = ", ".join(map(printable, sorted(inner)[:3]))
            raise DataError(
                f"{self.root} has one class, {printable(labels[0])}, which holds the folders {shown}: set "
                "prepare.class_depth to 2 if these are the classes"
            )
        if self.depth != 1 or len(labels) < 2 or self.direct or not all(self.below.values()):
            return
        inner = set.union(*self.below.values())
        equal = len(inner) > 1 and all(folders == inner for folders in self.below.values())
        if equal or all(map(SPLIT_NAMES.fullmatch, inner)):
            shown = ", ".join(map(printable, sorted(inner)[:3]))
            raise DataError(
                f"{self.root}: each of {', '.join(map(printable, labels[:3]))} holds the folders {shown}: set "
                "prepare.class_depth to 2 if these are the classes; if they are splits, put them above the classes"
            )

    def _remember(self, name: str, inside: Sequence[Sequence[str]]) -> None:
        self.below[name] = {steps[1] for steps in inside if len(steps) > 2}
        if any(len(steps) == 2 for steps in inside):
            self.direct.add(name)

    def _class_of(self, path: str, folder: Path) -> str:
        *folders, _ = _steps(path, folder)
        if self.depth > len(folders):
            raise DataError(f"{printable(path)} lies above the class folders: prepare.class_depth = {self.depth}")
        return _label(folders[self.depth - 1], folder)  # depth 0 is the last one

    def _files(self, folder: str, linked: bool) -> Iterator[str]:
        """The images below a folder."""
        if linked and not self._may_follow(folder):
            return
        for entry in self._entries(folder):
            if self._is_folder(entry):
                yield from self._files(entry.path, entry.is_symlink())
            elif self._is_image(entry):
                yield entry.path

    def _may_follow(self, folder: str) -> bool:
        """Whether a link to a folder is read; a folder that is read anyway would be read twice."""
        real, root = os.path.realpath(folder), os.path.realpath(self.root)
        try:
            if real == root or os.path.commonpath([real, root]) in (real, root):
                raise DataError(f"{printable(folder)} is a link to a folder above it or inside the source: remove it")
            self._links.check(folder, printable(folder))
            if any(os.path.commonpath([real, other]) in (real, other) for other in self.linked):
                raise DataError(f"{printable(folder)} is a link to a folder that another link leads to: remove one")
        except DataError as error:
            self.log.bad(error)
            return False
        self.linked.add(real)
        return True

    def _entries(self, folder: str | Path) -> list[os.DirEntry[str]]:
        """The entries of a folder, sorted; hidden and system folders are passed over."""
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        kept = []
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.casefold() not in SYSTEM_FOLDERS:
                kept.append(entry)
            elif entry.is_dir(follow_symlinks=False):
                self.log.pass_over("hidden or system folders", entry.path)
            else:
                self.log.pass_over("hidden files", entry.path)
        return kept

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link in a circle: `_is_image` names it
            return False

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        """By suffix, otherwise by the first bytes. All else is passed over; a link that leads nowhere is a fault."""
        suffix = os.path.splitext(entry.name)[1].lower()
        try:
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise DataError(f"{printable(entry.path)} is a link that leads nowhere or in a circle: remove it")
            utf8_name(entry.path, entry.path)
            if not entry.is_file():
                raise DataError(f"{printable(entry.path)} is not a regular file: remove it")
            if entry.is_symlink():
                self._links.check(entry.path, printable(entry.path))
        except DataError as error:
            self.log.bad(error)
            return False
        if suffix in IMAGE_SUFFIXES or _starts_like_an_image(entry.path):
            return True
        if suffix in UNREADABLE_SUFFIXES:
            self.log.pass_over(f"images that are not read ({suffix}: convert them to JPEG)", entry.path)
        else:
            self.log.pass_over(f"files with the suffix {printable(suffix)}" if suffix else NO_SUFFIX, entry.path)
        return False


def _label(name: str, folder: Path) -> str:
    return unicodedata.normalize("NFC", utf8_name(name, os.path.join(folder, name)))


def _steps(path: str, folder: Path) -> list[str]:
    """The folders and the file on the way from `folder` to `path`, which was found below it."""
    return path[len(os.path.join(folder, "")) :].split(os.sep)


def _starts_like_an_image(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            return is_image(file.read(16))
    except OSError:
        return False
