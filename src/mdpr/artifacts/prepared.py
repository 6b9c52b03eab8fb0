"""prepared/: classes.json, card.json and pictures.parquet; the three splits are in `mdpr.artifacts.image_tables`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from pydantic import Field

from mdpr.artifacts.formats import Format, write_json
from mdpr.artifacts.image_tables import ImageFile, read_images
from mdpr.errors import ArtifactError, printable

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "val", "test"]
ShotGroup = Literal["many", "medium", "few"]
Validation = Literal["source", "left_over", "train_share"]
SHOT_GROUPS: tuple[ShotGroup, ...] = ("many", "medium", "few")
SPLITS: tuple[Split, ...] = ("train", "val", "test")
CLASSES_FILE = "classes.json"
PICTURES_FILE = "pictures.parquet"
NO_HASH = 0
"""In place of the perceptual hash of a picture of one colour, which has none."""


class ClassName(Format):
    """One class of a source. `index` is the key everywhere; names may repeat: then `disambiguation` is a mark. `label`
    is the source's own word for the class (a folder's name), if the name is another."""

    index: int = Field(ge=0)
    name: str = Field(min_length=1, pattern=r"\S")
    disambiguation: str | None = None
    label: str | None = None


class ClassInfo(ClassName):
    """One class of the label set, with its training images and shot group."""

    train_images: int = Field(ge=0)
    shot: ShotGroup

    @property
    def display_name(self) -> str:
        """The name that people read: with the disambiguation, without control and invisible characters."""
        return printable(f"{self.name} ({self.disambiguation})" if self.disambiguation else self.name)


def display_names(classes: Sequence[ClassInfo]) -> list[str]:
    """A name for each class that no other class has: repeated names get their disambiguation, or their index."""
    times = Counter(item.name for item in classes)
    names = [
        f"{item.display_name} ({item.index})" if times[item.name] > 1 and not item.disambiguation else item.display_name
        for item in classes
    ]
    again = Counter(names)  # equal in all but what cannot be seen
    return [f"{name} ({item.index})" if again[name] > 1 else name for name, item in zip(names, classes, strict=True)]


class ClassList(Format):
    """classes.json."""

    format: Literal["mdpr-classes/1"] = "mdpr-classes/1"
    classes: tuple[ClassInfo, ...] = Field(min_length=2)


def write_classes(prepared: Path, classes: Sequence[ClassInfo]) -> None:
    """classes.json."""
    write_json(prepared / CLASSES_FILE, ClassList(classes=tuple(classes)))


def read_classes(prepared: Path) -> tuple[ClassInfo, ...]:
    """The classes of a prepared data set, in order of index; raises `ArtifactError` if indices have gaps."""
    path = prepared / CLASSES_FILE
    classes = ClassList.read(path).classes
    if [item.index for item in classes] != list(range(len(classes))):
        raise ArtifactError(f"{path}: indices must run 0, 1, 2, ... without gaps")
    return classes


class Origin(Format):
    """A data set that DVC tracks in a Git repository: `rev` as set, the `commit` that it was, `md5` DVC's own."""

    repo: str
    rev: str
    path: str
    commit: str
    md5: str


class StoreOrigin(Format):
    """A data set in an object store: `listing` is a digest of the paths, sizes and fingerprints in the store."""

    address: str
    objects: int
    bytes: int
    listing: str


class Tally(Format):
    """How many things of a source have something in common, and the names of the first of them."""

    count: int
    examples: tuple[str, ...]


class Alike(Format):
    """Groups of pictures that look alike: how many groups, pictures in them, and pictures in the largest."""

    groups: int
    images: int
    largest: int


class Since(Format):
    """The images since an earlier version: `moved` are in another split, `stayed` in the same one, `came` were in none,
    `went` are in none. `pictures` is the sha256 of that version's pictures.parquet."""

    pictures: str
    stayed: int
    moved: int
    came: int
    went: int

    def in_words(self) -> str:
        """The changes in one line."""
        return (
            f"since the previous version {self.moved:,} images moved to another split, {self.stayed:,} stayed, "
            f"{self.came:,} came, {self.went:,} went"
        )


class DataCard(Format):
    """card.json: how a prepared data set was cut (the keys of `prepare` in params.yaml) and what came of it.

    validation: `source` the source brought a split of its own; `left_over` what the cut left in the pool;
    `train_share` a share of each class's training images. test: `source`, or `share` of each class of the pool.
    left_out: images and rows of the source that could not be used, a line each. passed_over: files and folders that are
    no images, by reason. interpreted: images used, by what had to be interpreted in their files. dropped_classes: the
    images of each class that was too small. train_only: classes without an image in val and test. origin: where the
    source lies in DVC or in an object store, if it came from there. cut_by: what decided which split an image of the
    pool is in. alike: the groups of the pool that share a split. since: the changes since `prepare.previous`.
    """

    format: Literal["mdpr-card/1"] = "mdpr-card/1"
    source: str
    hub_name: str
    hub_rev: str
    emblems: str
    profile: Literal["exponential", "step", "pareto", "natural"]
    imbalance_ratio: float
    pareto_power: float
    max_images_per_class: int
    class_order: str
    val_from: str
    val_images_per_class: int
    val_share: float
    test_share: float
    cut_by: Literal["content", "order"]
    near_duplicate_bits: int
    many_above: int
    few_below: int
    shots_from: float | None
    short_side_px: int
    background: str
    class_name_style: str
    class_depth: int
    follow_links: bool
    small_classes: str
    min_images_per_class: int
    test_from: str
    drop_duplicates: bool
    skip_bad: bool
    seed: int
    validation: Validation
    test: Literal["source", "share"]
    images: dict[Split, int]
    images_per_class: dict[Split, tuple[int, ...]]  # in order of class index
    sha256: dict[str, str]  # of each split's file
    left_out: tuple[str, ...]
    passed_over: dict[str, Tally]
    interpreted: dict[str, Tally]
    dropped_classes: dict[str, int]
    train_only: tuple[str, ...]
    origin: Origin | StoreOrigin | None
    alike: Alike | None
    since: Since | None


class Pictures(NamedTuple):
    """The marks by which pictures of a split are known again, in order of its rows.

    image_N   int64, `image_digest` of each
    hash_N    uint64, perceptual hash (`mdpr.data.near_duplicates`) or `NO_HASH`
    """

    image_N: np.ndarray
    hash_N: np.ndarray


def write_pictures(prepared: Path, pictures: Mapping[Split, Pictures]) -> None:
    """pictures.parquet: split, image and hash of every image, about 20 bytes each."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = np.concatenate([np.full(len(pictures[name].image_N), name) for name in SPLITS])
    image_N, hash_N = (np.concatenate(column) for column in zip(*(pictures[name] for name in SPLITS), strict=True))
    table = pa.table({"split": pa.array(names).dictionary_encode(), "image": image_N, "hash": hash_N})
    pq.write_table(table, prepared / PICTURES_FILE)


def read_pictures(file: Path | BinaryIO, where: str) -> dict[Split, Pictures]:
    """The pictures of a prepared data set, by split; raises `ArtifactError`, with `where`, for a file that is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["split", "image", "hash"])
        names = table["split"].cast(pa.string()).to_numpy()
        image_N, hash_N = (
            table[key].cast(kind).to_numpy() for key, kind in (("image", pa.int64()), ("hash", pa.uint64()))
        )
    except FileNotFoundError:
        raise ArtifactError(f"{where} has no {PICTURES_FILE}: prepare it again") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ArtifactError(f"{PICTURES_FILE} of {where} is damaged: {error}") from None
    return {name: Pictures(image_N[names == name], hash_N[names == name]) for name in SPLITS}


def read_card(prepared: Path) -> DataCard:
    """card.json; raises `ArtifactError`."""
    return DataCard.read(prepared / "card.json")


def read_split(prepared: Path, split: Split) -> ImageFile:
    """The images of a split; raises `ArtifactError` if they are not those that card.json counts."""
    import numpy as np

    path = prepared / f"{split}.parquet"
    images, expected = read_images(path), read_card(prepared).images_per_class[split]
    found = dict(zip(*(values.tolist() for values in np.unique(images.labels_N, return_counts=True)), strict=True))
    for label in sorted({*found, *range(len(expected))}):
        count = expected[label] if 0 <= label < len(expected) else 0
        if found.get(label, 0) != count:
            raise ArtifactError(
                f"{path} has {found.get(label, 0)} images of class {label}, card.json says {count}: run prepare again"
            )
    return images


def data_digests(prepared: Path) -> dict[str, str]:
    """Of a prepared data set: one digest of its splits, and where its source lies, if it came from DVC or a store."""
    card = read_card(prepared)
    splits = "".join(f"{name}\0{digest}\n" for name, digest in sorted(card.sha256.items()))
    origin = card.origin.model_dump() if card.origin else {}
    return {
        "mdpr.data_digest": hashlib.sha256(splits.encode()).hexdigest(),
        **{f"mdpr.data_{key}": str(value) for key, value in origin.items() if value},
    }


def model_digests(prepared: Path, *, knowledge: str, backbone: str) -> dict[str, str]:
    """Of a model: its data, the digest of its knowledge base, the fingerprint of its backbone, mdpr's version."""
    from mdpr import __version__

    return {
        "mdpr.version": __version__,
        **data_digests(prepared),
        "mdpr.knowledge_digest": knowledge,
        "mdpr.backbone": backbone,
    }
