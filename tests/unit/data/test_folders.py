"""Folders as other people have them: read, or refused with the fix; nothing is guessed in silence."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from mdpr.data.sources import Place, Source, open_source
from mdpr.errors import DataError
from mdpr.params import PrepareParams

Png = Callable[..., bytes]
SYSTEM_FOLDERS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".ipynb_checkpoints")


@pytest.fixture
def tree(tmp_path: Path, png: Png) -> Callable[[Mapping[str, int]], Path]:
    """tree({"train/cat": 6}): folders with so many pictures each."""

    def make(folders: Mapping[str, int]) -> Path:
        root = tmp_path / "set"
        for number, (name, count) in enumerate(folders.items()):
            (root / name).mkdir(parents=True)
            for index in range(count):
                (root / name / f"{index}.png").write_bytes(png(1000 * number + index))
        return root

    return make


Tree = Callable[[Mapping[str, int]], Path]


def place(root: Path, **settings: object) -> Place:
    return Place.of(PrepareParams.model_validate({"source": "folder", "root": str(root), **settings}))


def opened(root: Path, **settings: object) -> Source:
    return open_source("folder", place(root, **settings))


def counts(source: Source) -> dict[str, int]:
    labels_N = source.pool.labels_N
    return {item.name: int((labels_N == item.index).sum()) for item in source.classes}


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_folders_of_systems_are_no_classes_and_hold_no_pictures(name: str, tree: Tree) -> None:
    root = tree({"cat": 6, "dog": 6, f"cat/{name}/a": 3, f"dog/{name}": 3, name: 3})
    here = place(root)
    assert counts(open_source("folder", here)) == {"cat": 6, "dog": 6}
    tally = here.log.passed_over["hidden or system folders"]
    assert (tally.count, set(tally.examples)) == (3, {name, f"cat/{name}", f"dog/{name}"})
    assert len(here.log.report()) == 1


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".pgm", ".mpo", "", ".jpg_large"])
def test_content_decides_and_a_suffix_is_a_hint(suffix: str, tree: Tree, png: Png) -> None:
    root = tree({"cat": 6, "dog": 0})
    for index in range(3):
        (root / "dog" / f"{index}{suffix}").write_bytes(png(index))
    assert counts(opened(root)) == {"cat": 6, "dog": 3}


def test_pictures_of_a_format_that_cannot_be_read_are_counted(tree: Tree) -> None:
    root = tree({"cat": 6, "dog": 6})
    for index in range(40):
        (root / "dog" / f"{index}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    here = place(root)
    open_source("folder", here)
    (line,) = here.log.report()
    assert line.startswith("passed over: 40 images that are not read (.heic: convert them to JPEG) (dog/0.heic, ")
    assert len(here.log.passed_over[next(iter(here.log.passed_over))].examples) == 3


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        *[
            ({"train/a": 6, "train/b": 6, f"{name}/a": 6, f"{name}/b": 6}, f"{name} is no split: rename it")
            for name in ("valid", "validation", "dev", "Val", "eval", "Testing", "test_set", "TEST")
        ],
        (
            {"Training/a": 6, "Training/b": 6, "Testing/a": 6, "Testing/b": 6},
            r"Testing is no split: rename it to train",
        ),
        ({"train_set/a": 6, "test_set/a": 6}, "is no split: rename it"),
        (
            {"bus": 6, "plane": 6, "train": 6},
            "train holds images but no class .* rename it if train is a class",
        ),
        ({"bus": 6, "plane": 6, "val": 6}, r"has a folder val but no folder train: .* rename val if it is a class"),
        ({"bus": 6, "plane": 6, "Train": 6}, r"Train is no split: .* if it is a class, give it another name"),
        ({"train": 6}, "train holds images but no class folders"),
        (
            {"train/a": 6, "train/b": 6, "test": 6},
            "test holds images but no class .* prepare.test_from to share",
        ),
        (
            {"A/cat": 6, "A/dog": 6, "B/cat": 6, "B/dog": 6},
            "A, B holds the folders cat, dog: set .*class_depth to 2",
        ),
        ({"cat/train": 6, "cat/test": 6, "dog/train": 6}, "if they are splits, put them above the classes"),
        ({"Bee": 6, "bee": 6}, r"'Bee' and 'bee' differ by case"),
        ({"a b": 6, "a  b": 6}, "differ by case, spaces"),
        ({"a\u200bb": 6, "ab": 6}, r"'a\\u200bb' differ by .*invisible"),
        ({"set/cat": 6, "set/dog": 6}, "one class, set, which holds the folders cat, dog: set .*class_depth to 2"),
        ({"train/x/cat": 6, "train/x/dog": 6}, "one class, x, which holds the folders cat, dog"),
        ({"fire_truck": 6, "fire truck": 6}, "class names 'fire truck' and 'fire truck' .'fire_truck'. differ"),
        ({"a\x07b": 6, "c": 6}, r"the class name 'a\\x07b' holds a control character"),
        ({"a\nb": 6, "c": 6}, r"the class name 'a\\nb' holds a control character"),
        ({"a\x85b": 6, "c": 6}, r"the class name 'a\\x85b' holds"),
        ({"a\x1b]0;t\x07": 6, "c": 6}, r"the class name 'a\\x1b\]0;t\\x07' holds"),
        ({"a\ufffeb": 6, "c": 6}, r"the class name 'a\\ufffeb' holds"),
    ],
)
def test_folders_that_could_be_read_in_two_ways_are_refused(folders: dict[str, int], message: str, tree: Tree) -> None:
    with pytest.raises(DataError, match=message) as caught:
        opened(tree(folders))
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_lies_beside_the_splits_is_passed_over_with_a_line(tree: Tree) -> None:
    root = tree({"train/a": 6, "train/b": 6, "annotations": 2})
    (root / "README.md").write_text("about")
    here = place(root)
    assert counts(open_source("folder", here)) == {"a": 6, "b": 6}
    assert here.log.passed_over["files or folders beside the splits"].examples == ("README.md", "annotations")


def test_loose_pictures_are_passed_over_with_a_line(tree: Tree, png: Png) -> None:
    root = tree({"a": 6, "b": 6})
    (root / "loose.png").write_bytes(png(9))
    here = place(root)
    open_source("folder", here)
    assert here.log.passed_over["images outside the class folders"].examples == ("loose.png",)


@pytest.mark.parametrize(("depth", "classes"), [(2, ["cat", "dog"]), (0, ["cat", "dog"]), (1, ["house", "wild"])])
def test_the_depth_says_which_folder_is_the_class(depth: int, classes: list[str], tree: Tree) -> None:
    root = tree({"house/cat": 3, "house/dog": 4, "wild/dog": 2})
    source = opened(root, class_depth=depth)
    assert [item.name for item in source.classes] == classes
    assert counts(source) == ({"cat": 3, "dog": 6} if depth != 1 else {"house": 7, "wild": 2})


def test_a_picture_above_the_class_folders_is_named(tree: Tree) -> None:
    with pytest.raises(DataError, match=r"house/0\.png lies above the class folders: prepare\.class_depth = 2"):
        opened(tree({"house": 1, "house/cat": 3, "wild/dog": 2}), class_depth=2)


def test_one_inner_folder_of_the_same_name_is_no_class(tree: Tree) -> None:
    assert counts(opened(tree({"cat/images": 3, "dog/images": 2}))) == {"cat": 3, "dog": 2}


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_forms_of_one_letter_are_one_class(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree({"train/\u00e9": 3, "train/ok": 3, "test/e\u0301": 2, "test/ok": 2, "train/e\u0301": 1})
    source = opened(root)
    assert [item.name for item in source.classes] == ["ok", "\u00e9"]
    assert counts(source) == {"ok": 3, "\u00e9": 4}
    assert source.test is not None
    assert np.bincount(source.test.labels_N).tolist() == [2, 2]
    assert "several folders have the name" in caplog.text
    everything = np.arange(len(source.pool.labels_N))
    assert len({image.read() for image in source.pool.images(everything)}) == 7


@pytest.mark.parametrize(
    ("style", "names"),
    [
        ("as_is", ["001.Black_footed_Albatross", "GreatWhiteShark", "aerosol_can", "fire-truck"]),
        ("spaces", ["001.Black footed Albatross", "GreatWhiteShark", "aerosol can", "fire-truck"]),
        ("words", ["Black footed Albatross", "Great White Shark", "aerosol can", "fire-truck"]),
    ],
)
def test_styles_of_names(style: str, names: list[str], tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    folders = ("001.Black_footed_Albatross", "GreatWhiteShark", "aerosol_can", "fire-truck")
    source = opened(tree(dict.fromkeys(folders, 2)), class_name_style=style)
    assert [item.name for item in source.classes] == names
    assert [item.label or item.name for item in source.classes] == list(folders)
    assert ("are not words that a text encoder knows" in caplog.text) == (style != "words")


@pytest.mark.parametrize("name", ["class_12", "n01440764", "7", "12.x"])
def test_names_that_are_no_words_are_pointed_out(name: str, tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    opened(tree({name: 2, "cat": 2}), class_name_style="as_is")
    assert "1 class names are not words" in caplog.text
    assert "names.csv" in caplog.text


def test_names_with_invisible_characters_are_shown_escaped(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    opened(tree({"red\u202e\u200b": 2, "cat": 2}))
    assert r"'red\u202e\u200b'" in caplog.text


SYNSETS = {"n01440764": 2, "n01443537": 2}
NAMES = ["tench", "goldfish"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.csv", "folder,name\nn01440764,tench\nn01443537,goldfish\nn09999999,other\n"),
        ("names.csv", "label,name\r\nn01443537,goldfish\r\nn01440764,tench\r\n"),
        ("classes.json", '{"n01440764": "tench", "n01443537": "goldfish"}'),
        ("classes.json", '{"classes": [{"index": 0, "name": "tench"}, {"index": 1, "name": "goldfish"}]}'),
        ("words.txt", "n01443537\tgoldfish, Carassius auratus\n\nn01440764\ttench, Tinca tinca\nn1\tx\n"),
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"),
    ],
)
def test_names_beside_the_folders_are_used(file: str, content: str, tree: Tree) -> None:
    root = tree(SYNSETS)
    (root / file).write_text(content)
    here = place(root)
    source = open_source("folder", here)
    assert [(item.name, item.label) for item in source.classes] == list(zip(NAMES, SYNSETS, strict=True))
    assert not here.log.passed_over


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("names.csv", "folder,name\nn01440764,tench\n", r"names\.csv has no name for 'n01443537'"),
        ("names.csv", "n01440764,tench\n", r"names\.csv must start with the line label,name"),
        ("names.csv", "folder,name\nn01440764,tench,x\n", r"names\.csv line 2: expected 2 values"),
        (
            "names.csv",
            "folder,name\nn01440764,x\nn01443537,X\n",
            "class names 'x' .'n01440764'. and 'X' .'n01443537'. differ",
        ),
        ("classes.json", '{"n01440764": "tench"}', r"classes\.json has no name for 'n01443537'"),
        ("classes.json", '{"n01440764": 3}', r"classes\.json: n01440764 must have a name, not 3"),
        ("classes.json", '{"classes": [{"index": 0, "name": "tench"}]}', r"classes\.json has 1 classes, and 2 labels"),
        ("classes.json", "[" * 100_000, r"classes\.json"),
        ("words.txt", "n01440764\ttench\n", r"words\.txt has no words for n01443537"),
    ],
)
def test_names_that_do_not_fit_are_refused(file: str, content: str, message: str, tree: Tree) -> None:
    root = tree(SYNSETS)
    (root / file).write_text(content)
    with pytest.raises(DataError, match=message):
        opened(root)


def test_synsets_of_the_same_first_word_are_told_apart(tree: Tree) -> None:
    root = tree({"n03710637": 1, "n03710721": 1, "n02012849": 1, "n03126707": 1})
    lines = ("n03710637 maillot", "n03710721 maillot, tank suit", "n02012849 crane", "n03126707 crane")
    (root / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    found = {item.label: (item.name, item.disambiguation) for item in opened(root).classes}
    assert found["n03710721"] == ("maillot, tank suit", None)
    assert [found[label] for label in ("n02012849", "n03126707")] == [("crane", "n02012849"), ("crane", "n03126707")]


def test_a_list_of_words_beside_other_folders_is_no_list_of_names(tree: Tree) -> None:
    root = tree({"cat": 1, "dog": 1})
    (root / "words.txt").write_text("cat feline\ndog canine\n")
    assert counts(opened(root)) == {"cat": 1, "dog": 1}


def test_folders_that_are_numbers_are_indices_unless_the_list_has_other_numbers(tree: Tree) -> None:
    root = tree({"0": 1, "1": 2})
    listed = '{"classes": [{"index": 0, "name": "%s"}, {"index": 1, "name": "%s"}]}'
    (root / "classes.json").write_text(listed % ("zero", "one"))
    assert counts(opened(root)) == {"zero": 1, "one": 2}
    (root / "classes.json").write_text(listed % ("1", "0"))
    with pytest.raises(DataError, match="names classes by numbers that are not their indices"):
        opened(root)


def test_two_files_of_names_are_refused(tree: Tree) -> None:
    root = tree(SYNSETS)
    for name in ("names.csv", "classes.json"):
        (root / name).write_text("{}")
    with pytest.raises(DataError, match=r"has names\.csv and classes\.json: keep one"):
        opened(root)


# --- links, traps -----------------------------------------------------------------------------------------------------


def test_links_out_of_the_root_are_refused_or_followed_once(tree: Tree, tmp_path: Path, png: Png) -> None:
    root = tree({"cat": 2, "dog": 2})
    store = tmp_path / "store"
    store.mkdir()
    for index in range(3):
        (store / f"{index}.png").write_bytes(png(50 + index))
    (root / "cat" / "more").symlink_to(store)
    with pytest.raises(DataError, match=r"cat/more leads out of .* set prepare\.follow_links"):
        opened(root)
    assert counts(opened(root, follow_links=True)) == {"cat": 5, "dog": 2}
    (root / "horse").symlink_to(store)
    with pytest.raises(DataError, match="horse is a link to a folder that another link leads to"):
        opened(root, follow_links=True)
    here = place(root, skip_bad=True)
    assert counts(open_source("folder", here)) == {"cat": 2, "dog": 2, "horse": 0}
    assert len(here.log.left_out) == 2


def test_a_link_to_a_picture_follows_the_same_rule(tree: Tree, tmp_path: Path, png: Png) -> None:
    root = tree({"cat": 2, "dog": 2})
    (tmp_path / "away.png").write_bytes(png(7))
    (root / "cat" / "linked.png").symlink_to(tmp_path / "away.png")
    (root / "dog" / "inside.png").symlink_to("../cat/0.png")
    with pytest.raises(DataError, match=r"cat/linked\.png leads out of"):
        opened(root)
    assert counts(opened(root, follow_links=True)) == {"cat": 3, "dog": 3}


@pytest.mark.parametrize("target", ["..", ".", "../dog", "inner"])
def test_links_into_the_source_would_read_a_folder_twice(target: str, tree: Tree) -> None:
    root = tree({"cat": 2, "dog": 2, "cat/inner": 1})
    (root / "cat" / "loop").symlink_to(target)
    for follow in (False, True):
        with pytest.raises(DataError, match="cat/loop is a link to a folder above it or inside the source: remove it"):
            opened(root, follow_links=follow)


@pytest.mark.parametrize("target", ["nowhere.png", "trap.png"])
def test_a_dead_link_is_named(target: str, tree: Tree) -> None:
    root = tree({"cat": 2, "dog": 2})
    (root / "cat" / "trap.png").symlink_to(target)
    with pytest.raises(DataError, match=r"trap\.png is a link that leads nowhere or in a circle: remove it"):
        opened(root)


def test_files_that_are_none_are_named_before_a_byte_is_read(tree: Tree) -> None:
    root = tree({"cat": 2, "dog": 2})
    os.mkfifo(root / "cat" / "p.png")
    with pytest.raises(DataError, match=r"cat/p\.png is not a regular file: remove it"):
        opened(root)
    (root / "cat" / "p.png").unlink()
    (root / "cat" / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"cat/zero\.png is not a regular file"):
        opened(root, follow_links=True)
    (root / "cat" / "zero.png").unlink()
    with (root / "cat" / "sparse.png").open("wb") as file:
        file.truncate(200 * 2**30)
    source = opened(root)
    with pytest.raises(DataError, match=r"sparse\.png has 214,748,364,800 bytes, more than"):
        [image.read() for image in source.pool.images(np.arange(len(source.pool.labels_N)))]


def test_a_root_that_is_a_link_is_no_link_out_of_the_root(tree: Tree, tmp_path: Path) -> None:
    root = tree({"cat": 2, "dog": 2})
    (tmp_path / "linked").symlink_to(root)
    source = opened(tmp_path / "linked")
    assert [len(image.read()) > 0 for image in source.pool.images(np.arange(4))] == [True] * 4
    shutil.rmtree(root)
