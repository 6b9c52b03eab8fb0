"""Everything a source may hold that is no usable image: named by file and row, or skipped, counted and listed."""

import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdpr.artifacts import read_card, read_classes, read_images, write_images
from mdpr.errors import DataError
from mdpr.params import Params, PrepareParams
from mdpr.stages.stage import load_stage, run_stage

MakeSource = Callable[..., Path]


def prepare(source: str, root: Path, prepared: Path, **changes: object) -> Path:
    settings = {"source": source, "root": str(root), "profile": "natural", "val_images_per_class": 3, **changes}
    run_stage(load_stage("prepare"), {"prepared": prepared}, Params(prepare=PrepareParams.model_validate(settings)))
    return prepared


def gif(frames: int) -> bytes:
    """An animation of single-coloured frames, the first of them red."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)][:frames]
    first, *others = (Image.new("RGB", (20, 20), colour) for colour in colours)
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=others)
    return stream.getvalue()


def huge() -> bytes:
    """A valid JPEG of 168 megapixels, all one grey."""
    stream = io.BytesIO()
    Image.new("L", (14_000, 12_000), 128).save(stream, "JPEG", quality=10)
    return stream.getvalue()


def truncated(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-60])


def looped(image: Path) -> None:
    image.unlink()
    image.symlink_to(image.name)


def dangling(image: Path) -> None:
    image.unlink()
    image.symlink_to("nowhere.png")


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero bytes": (lambda image: image.write_bytes(b""), "is empty (0 bytes)"),
    "text": (lambda image: image.write_bytes(b"hello, this is no image"), "is not an image"),
    "truncated": (truncated, "cannot be decoded"),
    "168 megapixels": (lambda image: image.write_bytes(huge()), "has 14000 x 12000 pixels"),
    "link in a circle": (looped, "is a link that leads nowhere or in a circle"),
    "dangling link": (dangling, "is a link that leads nowhere or in a circle"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_stops_or_is_skipped_and_listed(kind: str, make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder()
    spoil, message = BAD_FILES[kind]
    spoil(root / "train" / "bee" / "007.png")
    with pytest.raises(DataError) as caught:
        prepare("folder", root, tmp_path / "prepared")
    assert f"{root}/train/bee/007.png" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "prepared").exists()

    card = read_card(prepare("folder", root, tmp_path / "prepared", skip_bad=True))
    (listed,) = card.left_out
    assert listed.startswith("train/bee/007.png ")
    assert message in listed
    assert card.images["train"] + card.images["val"] == 64
    assert sum(item.train_images for item in read_classes(tmp_path / "prepared")) == card.images["train"]
    assert len(read_images(tmp_path / "prepared" / "train.parquet")) == card.images["train"]


@pytest.mark.parametrize("cut_by", ["content", "order"])
def test_all_bad_pictures_are_counted_at_once_and_the_first_named(
    cut_by: str, make_folder: MakeSource, tmp_path: Path
) -> None:
    root = make_folder()
    bad = [f"train/{name}/{row:03}.png" for name in ("ant", "bee") for row in (2, 3, 5)] + ["test/cat/001.png"]
    for path in bad:
        truncated(root / path)
    with pytest.raises(DataError) as caught:
        prepare("folder", root, tmp_path / "prepared", cut_by=cut_by)
    line = str(caught.value)
    assert line.startswith(f"{len(bad)} images or rows cannot be used: {root}/")
    assert sum(f"{root}/{path} cannot be decoded" in line for path in bad) == 3
    assert "prepare.skip_bad: true" in line
    assert "\n" not in line
    assert not (tmp_path / "prepared").exists()
    card = read_card(prepare("folder", root, tmp_path / "prepared", cut_by=cut_by, skip_bad=True))
    assert {listed.partition(" ")[0] for listed in card.left_out} == set(bad)


@pytest.mark.parametrize("cut_by", ["content", "order"])
def test_bad_pictures_are_named_before_the_class_that_lacks_them(
    cut_by: str, make_folder: MakeSource, tmp_path: Path
) -> None:
    root = make_folder({"train": (9, 9, 9), "test": (4, 2, 4)})
    for name in ("test/bee", "train/cat"):
        for image in (root / name).iterdir():
            truncated(image)
    with pytest.raises(DataError, match=r"^11 images or rows cannot be used: .*/train/cat/000\.png"):
        prepare("folder", root, tmp_path / "prepared", cut_by=cut_by)


def test_what_is_left_out_does_not_change_what_else_is_there(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder()
    whole = list(read_images(prepare("folder", root, tmp_path / "whole") / "train.parquet"))
    spoiled = next(record for record in whole if record.path.startswith("train/ant"))
    truncated(root / spoiled.path)
    rest = list(read_images(prepare("folder", root, tmp_path / "rest", skip_bad=True) / "train.parquet"))
    assert rest == [record for record in whole if record != spoiled]


def test_a_class_that_loses_its_last_image_is_named(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"train": (9, 9, 9), "test": (4, 1, 4)})
    truncated(root / "test" / "bee" / "000.png")
    with pytest.raises(DataError, match=r"test: class 1 \(bee\) has no image"):
        prepare("folder", root, tmp_path / "prepared", skip_bad=True)
    assert not (tmp_path / "prepared").exists()


BAD_ROWS = {
    "../secret.png,ant,train": "images.csv line 2: path '../secret.png' leads out of",
    "/etc/passwd,ant,train": "images.csv line 2: path '/etc/passwd' leads out of",
    ",ant,train": "images.csv line 2: the path is empty",
    "gone.png,ant,train": "gone.png (images.csv line 2) does not exist",
    "train/ant,ant,train": "train/ant (images.csv line 2) cannot be read: Is a directory",
}


def test_bad_rows_of_a_csv(make_csv: MakeSource, tmp_path: Path) -> None:
    good = [f"train/{name}/{row:03}.png,{name},train" for name in ("ant", "bee") for row in range(8)]
    good += ["test/ant/000.png,ant,test", "test/bee/000.png,bee,test"]
    root = make_csv()
    for row, message in BAD_ROWS.items():
        (root / "images.csv").write_text("\n".join(["path,label,split", row, *good]) + "\n")
        with pytest.raises(DataError) as caught:
            prepare("csv", root, tmp_path / "prepared")
        assert message in str(caught.value)
    (root / "images.csv").write_text("\n".join(["path,label,split", *BAD_ROWS, *good]) + "\n")
    with pytest.raises(DataError, match=r"^3 images or rows cannot be used: .* line 2: .* line 3: .* line 4: "):
        prepare("csv", root, tmp_path / "prepared")  # what the list shows stops before a picture is read
    card = read_card(prepare("csv", root, tmp_path / "prepared", skip_bad=True, val_images_per_class=1))
    assert sum(card.images.values()) == 18
    assert len(card.left_out) == len(BAD_ROWS)
    assert all(any(f"line {line}" in text for text in card.left_out) for line in range(2, 7))


def test_a_label_outside_the_list_in_parquet(make_parquet: MakeSource, tmp_path: Path) -> None:
    root = make_parquet()
    rows = list(read_images(root / "test.parquet"))
    rows[2] = rows[2]._replace(label=3)
    write_images(root / "test.parquet", *zip(*rows, strict=True))
    with pytest.raises(DataError, match=r"test\.parquet row 2 has label 3, the classes end at 2"):
        prepare("parquet", root, tmp_path / "prepared")
    write_images(root / "test.parquet", *zip(*[row._replace(label=3) for row in rows], strict=True))
    with pytest.raises(DataError, match=r"^12 images or rows cannot be used: .* row 2 has label 3.*; \.\.\.; correct"):
        prepare("parquet", root, tmp_path / "prepared")
    write_images(root / "test.parquet", *zip(*rows, strict=True))
    card = read_card(prepare("parquet", root, tmp_path / "prepared", skip_bad=True))
    assert card.images["test"] == 11
    assert card.left_out[0].startswith("test.parquet row 2 has label 3")


def test_a_suffix_may_be_wrong_and_an_animation_gives_its_first_frame(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder()
    (root / "train" / "bee" / "wrong.jpg").write_bytes(gif(3))
    (root / "train" / "bee" / "notes.txt").write_text("no image, and not looked into")
    card = read_card(prepare("folder", root, tmp_path / "prepared", short_side_px=10))
    assert card.left_out == ()
    assert card.passed_over["files with the suffix .txt"].examples == ("train/bee/notes.txt",)
    found = [record for split in ("train", "val") for record in read_images(tmp_path / "prepared" / f"{split}.parquet")]
    (image,) = (record.image for record in found if record.path == "train/bee/wrong.jpg")
    with Image.open(io.BytesIO(image)) as small:
        assert (small.format, small.size) == ("JPEG", (10, 10))
        red, green, blue = np.asarray(small)[5, 5].astype(int)
    assert red > 240
    assert max(green, blue) < 10


def test_a_class_folder_that_links_to_a_folder_above(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder()
    (root / "train" / "loop").symlink_to("..")
    with pytest.raises(DataError, match=r"train/loop is a link to a folder above it .* remove it"):
        prepare("folder", root, tmp_path / "prepared")


def test_class_folders_that_differ_by_case(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder()
    (root / "train" / "Bee").mkdir()
    if len(list((root / "train").iterdir())) == 3:
        pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(DataError, match=r"train: the classes 'Bee' and 'bee' differ by case, .* rename one"):
        prepare("folder", root, tmp_path / "prepared")


def test_names_that_are_not_utf8(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder()
    image = root / "train" / "bee" / "007.png"
    image.rename(image.with_name(os.fsdecode(b"fran\xe7ais.png")))
    with pytest.raises(DataError, match=r"train/bee/fran\\xe7ais\.png: the name is not UTF-8: rename the file"):
        prepare("folder", root, tmp_path / "prepared")
    card = read_card(prepare("folder", root, tmp_path / "prepared", skip_bad=True))
    assert card.left_out == (r"train/bee/fran\xe7ais.png: the name is not UTF-8: rename the file",)
    (root / "train" / "bee").rename(root / "train" / os.fsdecode(b"gu\xeape"))
    with pytest.raises(DataError, match=r"train/gu\\xeape: the name is not UTF-8"):
        prepare("folder", root, tmp_path / "prepared", skip_bad=True)


def test_folders_without_splits_and_a_csv_without_the_column(make_csv: MakeSource, tmp_path: Path) -> None:
    root = make_csv()
    lines = (root / "images.csv").read_text().splitlines()
    (root / "images.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    card = read_card(prepare("csv", root, tmp_path / "listed", test_share=0.5))
    assert (card.test, sum(card.images.values())) == ("share", 77)
    assert 17 <= card.images["test"] <= 59  # 77 / 2, within five standard deviations of so many draws
    folder = read_card(prepare("folder", root / "train", tmp_path / "unsplit", test_share=0.5))
    assert [sum(counts) for counts in zip(*folder.images_per_class.values(), strict=True)] == [30, 20, 15]
    listed, unsplit = (
        {record.image for record in read_images(tmp_path / name / "test.parquet")} for name in ("listed", "unsplit")
    )
    assert unsplit < listed  # the images of test/ are in one of the two only, and move no other


def test_resizing_keeps_small_images_and_shape(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder()
    original = root / "train" / "ant" / "000.png"
    Image.open(original).resize((60, 30)).save(root / "test" / "ant" / "000.png")
    prepare("folder", root, tmp_path / "prepared", short_side_px=20)
    test = {record.path: record.image for record in read_images(tmp_path / "prepared" / "test.parquet")}
    with Image.open(io.BytesIO(test["test/ant/000.png"])) as image:
        assert (image.format, image.size) == ("JPEG", (40, 20))
    assert test["test/ant/001.png"] == (root / "test/ant/001.png").read_bytes()


@pytest.mark.parametrize("spare_bytes", [0, 20_000])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    spare_bytes: int, make_folder: MakeSource, tmp_path: Path
) -> None:
    """The limit on the size of files stands in for a full disk: the same calls fail."""
    root = make_folder()
    (tmp_path / "params.yaml").write_text(f"prepare: {{source: folder, root: {root}, profile: natural}}\n")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (spare_bytes, spare_bytes))

    command = [sys.executable, "-B", "-m", "mdpr", "prepare", "--prepared", "prepared"]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "params.yaml"]


# --- small classes, duplicates, transparency --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            {"train": (9, 9, 1)},
            r"class 2 \(cat\) has 1 different pictures, but each of 3 splits .* prepare.small_classes",
        ),
        ({"train": (9, 9, 9), "test": (3, 3, 0)}, r"test: class 2 \(cat\) has no image: .* prepare.small_classes"),
        ({"train": (9, 9, 0)}, r"class 2 \(cat\) has no image: .* prepare.small_classes"),
        (
            {"train": (9, 9, 1), "test": (3, 3, 3)},
            r"class 2 \(cat\) has 1 different pictures, but each of 2 splits .* prepare.small_classes",
        ),
    ],
)
def test_small_classes_stop_are_dropped_or_are_for_training_only(
    counts: dict[str, tuple[int, ...]], message: str, make_folder: MakeSource, tmp_path: Path
) -> None:
    root = make_folder(counts) / ("" if "test" in counts else "train")
    with pytest.raises(DataError, match=message):
        prepare("folder", root, tmp_path / "prepared")
    card = read_card(prepare("folder", root, tmp_path / "dropped", small_classes="drop"))
    assert card.dropped_classes == {"cat": counts["train"][2]}
    assert [item.name for item in read_classes(tmp_path / "dropped")] == ["ant", "bee"]
    assert all(len(per_class) == 2 for per_class in card.images_per_class.values())
    kept = prepare("folder", root, tmp_path / "kept", small_classes="train_only")
    card = read_card(kept)
    if not counts["train"][2]:
        assert card.dropped_classes == {"cat": 0}
        return
    assert (card.dropped_classes, card.train_only) == ({}, ("cat",))
    assert card.images_per_class["train"][2] == counts["train"][2]
    assert card.images_per_class["val"][2] == 0
    labels = set(read_images(kept / "test.parquet").labels_N.tolist())
    assert labels <= {0, 1, 2}


def test_a_smallest_number_of_images_is_a_setting(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"train": (9, 4, 9), "test": (3, 3, 3)})
    with pytest.raises(DataError, match=r"class 1 \(bee\) has 4 images, fewer than prepare\.min_images_per_class = 5"):
        prepare("folder", root, tmp_path / "prepared", min_images_per_class=5)
    settings = {"min_images_per_class": 5, "small_classes": "drop"}
    card = read_card(prepare("folder", root, tmp_path / "prepared", **settings))
    assert card.dropped_classes == {"bee": 4}
    assert [(item.index, item.name) for item in read_classes(tmp_path / "prepared")] == [(0, "ant"), (1, "cat")]
    assert (card.images["train"] + card.images["val"], card.images["test"]) == (18, 6)
    with pytest.raises(DataError, match="0 of 3 classes are left"):
        prepare("folder", root, tmp_path / "none", min_images_per_class=50, small_classes="drop")


def test_the_test_set_may_come_from_validation_or_from_training(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"train": (10, 10, 10), "val": (2, 2, 2), "test": (3, 3, 3)})
    from_val = read_card(prepare("folder", root, tmp_path / "val", test_from="val"))
    assert (from_val.images["test"], from_val.validation) == (6, "train_share")
    share = read_card(prepare("folder", root, tmp_path / "share", test_from="share"))
    assert (share.images["test"], share.images["val"], share.test) == (6, 6, "share")
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match="test_from = val: the source has no validation split"):
        prepare("folder", root, tmp_path / "none", test_from="val")


def test_duplicates_are_dropped_from_training_first(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"train": (9, 9, 9), "test": (3, 3, 3)})
    stolen = root / "test" / "ant" / "001.png"
    with Image.open(stolen) as image:
        image.save(root / "train" / "ant" / "002.png", compress_level=0)  # other bytes, the same pixels
    (root / "train" / "bee" / "twice.png").write_bytes((root / "train" / "bee" / "001.png").read_bytes())
    card = read_card(prepare("folder", root, tmp_path / "prepared", drop_duplicates=True))
    tally = card.passed_over["images that came before (drop_duplicates)"]
    assert tally.count == 2
    assert "train/ant/002.png" in tally.examples
    assert card.images["test"] == 9
    assert card.images["train"] + card.images["val"] == 26


def test_transparent_pictures_are_written_as_they_look(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"train": (9, 9, 9), "test": (3, 3, 3)})
    clear = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    clear.putpixel((3, 4), (200, 100, 50, 255))
    clear.save(root / "test" / "ant" / "000.png")
    prepared = prepare("folder", root, tmp_path / "prepared", background="#0000ff")
    card = read_card(prepared)
    assert card.background == "#0000ff"
    assert card.interpreted["transparent"].examples == ("test/ant/000.png",)
    (record,) = [item for item in read_images(prepared / "test.parquet") if item.path == "test/ant/000.png"]
    with Image.open(io.BytesIO(record.image)) as image:
        assert (image.mode, image.getpixel((0, 0)), image.getpixel((3, 4))) == ("RGB", (0, 0, 255), (200, 100, 50))
