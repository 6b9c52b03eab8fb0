"""Every source gives the same thing; every mistake in one is named by file and row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mdpr.artifacts import write_images
from mdpr.data.class_list import shipped_class_list
from mdpr.data.sources import SOURCES, Place, Source
from mdpr.data.sources import open_source as open_at
from mdpr.data.sources.source import SourceSplit
from mdpr.errors import ArtifactError, DataError
from mdpr.params import PrepareParams

MakeSource = Callable[..., Path]
MakeFolder = MakeSource


def images_of(split: SourceSplit) -> set[tuple[bytes, int]]:
    rows = np.arange(len(split.labels_N))
    return {(image.read(), image.label) for image in split.images(rows)}


def open_source(kind: str, root: Path, **settings: object) -> Source:
    params = PrepareParams.model_validate({"source": kind, "root": str(root), **settings})
    return open_at(kind, Place.of(params))


def test_folder_and_csv_of_the_same_images_are_the_same_source(make_csv: MakeSource) -> None:
    root = make_csv()
    folder, listed = open_source("folder", root), open_source("csv", root)
    assert [item.name for item in folder.classes] == ["ant", "bee", "cat"]
    assert folder.classes == listed.classes
    assert images_of(folder.pool) == images_of(listed.pool)
    assert images_of(folder.test) == images_of(listed.test)
    assert len(images_of(folder.pool)) == 65
    assert (folder.val, listed.val) == (None, None)


@pytest.mark.parametrize("kind", ["csv", "folder", "parquet"])
def test_a_validation_split_is_found(kind: str, make_csv: MakeSource, make_parquet: MakeSource) -> None:
    make = make_parquet if kind == "parquet" else make_csv
    source = open_source(kind, make(counts={"train": (9, 8, 7), "val": (3, 2, 1), "test": (1, 1, 1)}))
    assert source.val is not None
    assert np.bincount(source.val.labels_N).tolist() == [3, 2, 1]


def test_parquet_rows_stream_in_any_selection(make_parquet: MakeSource, png: Callable[..., bytes]) -> None:
    pool = open_source("parquet", make_parquet()).pool
    chosen = np.array([0, 7, 64])
    found = [(image.read(), image.path, image.label) for image in pool.images(chosen)]
    assert found == [(png(row), f"train/{row}", pool.labels_N[row]) for row in chosen.tolist()]


def test_selection_crosses_row_groups_and_batches(tmp_path: Path, make_parquet: MakeSource) -> None:
    root = make_parquet()
    count = 2500
    write_images(root / "pool.parquet", [str(i).encode() for i in range(count)], [""] * count, [0] * count)
    pool = open_source("parquet", root).pool
    chosen = np.arange(0, count, 499)
    assert [int(image.read()) for image in pool.images(chosen)] == chosen.tolist()


def test_csv_with_byte_order_mark_quotes_and_other_column_order(make_csv: MakeSource) -> None:
    root = make_csv(
        ["split,label,path", 'train,"big, red ant",train/ant/000.png', 'test,bee,"train/ant/001.png"'],
        encoding="utf-8-sig",
    )
    source = open_source("csv", root)
    assert [item.name for item in source.classes] == ["bee", "big, red ant"]
    assert images_of(source.pool) == {((root / "train/ant/000.png").read_bytes(), 1)}


def test_csv_takes_indices_and_names_of_a_class_list(make_csv: MakeSource) -> None:
    root = make_csv(["path,label,split", "a,1,train", "b,crane,train", "c,0,test"])
    write_class_list(root, "drake", "crane")
    source = open_source("csv", root)
    assert source.pool.labels_N.tolist() == [1, 1]
    assert source.test.labels_N.tolist() == [0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path;label", "a;ant"], r"images\.csv has semicolons between its columns"),
        (["path\tlabel", "a\tant"], r"images\.csv has tabs between its columns"),
        (["path,label,split,fold", "a,ant,train,1"], r"images\.csv has an unknown column 'fold'"),
        (["path,split", "a,train"], r"images\.csv must have one column 'label'"),
        (["path,label,split", "a,ant"], r"images\.csv line 2: expected 3 values, path, label, split"),
        (["path,label,split", "a,ant,train,9"], r"images\.csv line 2: expected 3 values, path, label, split"),
        (["path,label,split", "a,ant,train", "b,bee,dev"], r"line 3: split 'dev' must be train, val or test"),
        (["path,label,split", "a,beee,train"], r"line 2: label 'beee' is not in .* did you mean 'bee'\?"),
        (["path,label,split", "a,7,train"], r"line 2: label '7' is not in the class list"),
        (["path,label,split", "a,ant,train", 'b,"ant,train'], r"images\.csv after line 2: unexpected end of data"),
        ([], r"images\.csv must have one column 'path'"),
    ],
)
def test_mistakes_in_a_csv_are_named(lines: list[str], message: str, make_csv: MakeSource) -> None:
    root = make_csv(lines)
    write_class_list(root, "ant", "bee", "cat")
    with pytest.raises(DataError, match=message):
        open_source("csv", root)


def test_numbers_without_a_class_list_are_refused(make_csv: MakeSource) -> None:
    with pytest.raises(DataError, match=r"line 2: label '3' is a number: add classes\.json"):
        open_source("csv", make_csv(["path,label,split", "a,3,train", "b,4,test"]))


def test_a_name_of_two_classes_needs_the_index(make_csv: MakeSource) -> None:
    root = make_csv(["path,label,split", "a,crane,train"])
    write_class_list(root, "crane", "crane")
    with pytest.raises(DataError, match=r"line 2: label 'crane' is the name of classes \[0, 1\]"):
        open_source("csv", root)


def test_a_file_that_is_not_there_is_named_with_its_line(make_csv: MakeSource) -> None:
    root = make_csv(["path,label,split", "train/ant/000.png,ant,train", "gone.png,bee,train"])
    pool = open_source("csv", root).pool
    with pytest.raises(DataError, match=r"gone\.png \(images\.csv line 3\) does not exist"):
        [image.read() for image in pool.images(np.arange(2))]


def test_csv_must_be_utf8(make_csv: MakeSource) -> None:
    root = make_csv(["path,label,split", "a,fourmi géante,train"], encoding="latin-1")
    with pytest.raises(DataError, match="is not UTF-8"):
        open_source("csv", root)


def test_folder_leaves_out_other_files_and_says_so(make_folder: MakeSource) -> None:
    root = make_folder()
    (root / "train" / "bee" / "notes.txt").write_text("not an image")
    (root / "train" / "bee" / ".hidden.png").write_text("nor this")
    place = Place.of(PrepareParams(source="folder", root=str(root)))
    source = open_at("folder", place)
    assert np.bincount(source.pool.labels_N).tolist() == [30, 20, 15]
    assert place.log.passed_over["files with the suffix .txt"].examples == ("train/bee/notes.txt",)
    assert place.log.passed_over["hidden files"].count == 1
    assert any("notes.txt" in line for line in place.log.report())


def test_folder_with_a_class_that_only_test_has(make_folder: MakeSource) -> None:
    root = make_folder()
    (root / "test" / "dog").mkdir()
    with pytest.raises(DataError, match=r"test/dog is a class that train does not have"):
        open_source("folder", root)


@pytest.mark.parametrize(
    ("label", "message"),
    [(3, r"test\.parquet row 1 has label 3, the classes end at 2"), (-1, "row 1 has label -1")],
)
def test_parquet_label_outside_the_list(label: int, message: str, make_parquet: MakeSource) -> None:
    root = make_parquet()
    write_images(root / "test.parquet", [b"", b""], ["a", "b"], [0, label])
    with pytest.raises(DataError, match=message):
        open_source("parquet", root)


def test_parquet_without_a_label(make_parquet: MakeSource) -> None:
    root = make_parquet()
    table = pq.read_table(root / "test.parquet")
    table = table.set_column(1, "label", pa.array([0, None, *[1] * (len(table) - 2)], pa.int64()))
    pq.write_table(table, root / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet row 1 has no label"):
        open_source("parquet", root)


def test_missing_things_are_named(tmp_path: Path, make_parquet: MakeSource) -> None:
    with pytest.raises(DataError, match=r"prepare\.root = .*/nowhere: there is no such folder"):
        open_source("embedded", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"images\.csv is missing"):
        open_source("csv", tmp_path)
    with pytest.raises(DataError, match="holds no folders"):
        open_source("folder", tmp_path)
    root = make_parquet()
    (root / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"test\.parquet is missing"):
        open_source("parquet", root)
    (root / "test.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ArtifactError, match=r"test\.parquet is not a readable Parquet file"):
        open_source("parquet", root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"classes\.json is not valid JSON"),
        ('{"classes": [{"index": 1, "name": "ant"}]}', "class 'ant' has index 1, expected 0"),
        ('{"classes": [{"index": 0, "name": " "}]}', r"classes\.0\.name"),
        ('{"classes": [{"index": 0, "name": "ant"}]}', "has 1 class, at least 2"),
        ('["ant", "bee"]', r"classes\.json"),
    ],
)
def test_bad_class_lists(content: str, message: str, make_parquet: MakeSource) -> None:
    root = make_parquet(counts={"train": (3, 0, 0), "test": (3, 0, 0)})
    (root / "classes.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_source("parquet", root)


def write_class_list(root: Path, *names: str) -> None:
    classes = [{"index": index, "name": name} for index, name in enumerate(names)]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))


def test_every_source_of_the_settings_has_a_function() -> None:
    assert set(get_args(PrepareParams.model_fields["source"].annotation)) == set(SOURCES)


@pytest.mark.parametrize("image", ["secret.png", "away/secret.png"])
def test_a_table_follows_the_rule_of_folders_for_links(
    image: str, make_csv: MakeSource, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    root = make_csv(["path,label", f"{image},ant", "train/bee/000.png,bee"])
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(png(1))
    (root / "away").symlink_to(tmp_path / "outside")
    (root / "secret.png").symlink_to(tmp_path / "outside" / "secret.png")
    pool = open_source("csv", root).pool
    with pytest.raises(DataError, match=rf"{image} \(images\.csv line 2\) leads out of .* prepare\.follow_links"):
        [item.read() for item in pool.images(np.arange(2))]
    followed = open_source("csv", root, follow_links=True).pool
    assert [item.read() for item in followed.images(np.array([0]))] == [png(1)]


def test_a_number_that_is_an_index_and_a_name_is_refused_in_a_table(make_csv: MakeSource) -> None:
    root = make_csv(["path,label", "a,0", "b,2"])
    write_class_list(root, "2", "1", "0")
    with pytest.raises(DataError, match="line 2: label '0' is an index and the name of class 2"):
        open_source("csv", root)
    write_class_list(root, "2017", "2018", "2019")
    assert open_source("csv", root).pool.labels_N.tolist() == [0, 2]


def test_a_number_in_a_published_list_is_an_index(tmp_path: Path) -> None:
    write_class_list(tmp_path, "2", "1", "0")
    for split in ("train", "val", "test"):
        write_list(tmp_path / f"Places_LT_{split}.txt", "a.jpg 0", "b.jpg 1", "c.jpg 2")
    source = open_source("places_lt", tmp_path)
    assert source.pool.labels_N.tolist() == [0, 1, 2]
    assert [item.name for item in source.classes] == ["2", "1", "0"]


def test_labels_of_a_table_get_names_and_one_form(make_csv: MakeSource) -> None:
    root = make_csv(["path,label", "a,e\u0301", "b,\u00e9", "c,fire_truck"])
    assert [item.name for item in open_source("csv", root).classes] == ["fire truck", "\u00e9"]
    (root / "names.csv").write_text("label,name\n\u00e9,letter\nfire_truck,engine\n", encoding="utf-8")
    source = open_source("csv", root)
    assert source.pool.labels_N.tolist() == [1, 1, 0]
    assert [(item.name, item.label) for item in source.classes] == [("engine", "fire_truck"), ("letter", "\u00e9")]


def test_numbers_may_be_named_one_by_one(make_csv: MakeSource) -> None:
    root = make_csv(["path,label", "a,7", "b,12"])
    (root / "classes.json").write_text('{"7": "seven", "12": "twelve"}')
    source = open_source("csv", root)
    assert [item.name for item in source.classes] == ["twelve", "seven"]
    assert source.pool.labels_N.tolist() == [1, 0]


def test_a_parquet_file_without_any_label_names_the_way_on(make_parquet: MakeSource) -> None:
    root = make_parquet()
    write_images(root / "test.parquet", [b"", b""], ["a", "b"], [-1, -1])
    with pytest.raises(DataError, match=r"test\.parquet has no labels .* prepare\.test_from"):
        open_source("parquet", root)
    assert open_source("parquet", root, test_from="share").test is None


# --- lists of benchmarks ----------------------------------------------------------------------------------------------


def write_list(file: Path, *lines: str, end: str = "\n") -> None:
    file.write_bytes((end.join(lines) + end).encode())


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_imagenet_lt(end: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    images, lists = make_folder(), tmp_path / "lists"
    lists.mkdir()
    write_list(lists / "ImageNet_LT_train.txt", "train/ant/000.png 1", "train/bee/001.png 999", end=end)
    write_list(lists / "ImageNet_LT_val.txt", "train/cat/002.png 0", end=end)
    write_list(lists / "ImageNet_LT_test.txt", "test/cat/000.png 0", "test/cat/001.png 5", end=end)
    source = open_source("imagenet_lt", lists, image_root=str(images))
    assert (len(source.classes), source.classes[0].name) == (1000, "tench")
    assert source.pool.labels_N.tolist() == [1, 999]
    assert source.val is not None
    assert source.val.labels_N.tolist() == [0]
    (image,) = source.pool.images(np.array([1]))
    assert image.read() == (images / "train/bee/001.png").read_bytes()
    assert image.where.endswith("train/bee/001.png (ImageNet_LT_train.txt line 2)")


def test_places_lt_has_the_shipped_names(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_list(tmp_path / f"Places_LT_{split}.txt", "a with a space.jpg 364")
    source = open_source("places_lt", tmp_path)
    assert len(source.classes) == 365
    (image,) = source.pool.images(np.array([0]))
    assert image.path == "a with a space.jpg"


def test_inat2018_takes_the_names_of_the_set_and_its_val_as_test(tmp_path: Path) -> None:
    names = [{"id": 1, "name": "Apis mellifera"}, {"id": 0, "name": "Bombus terrestris"}]
    (tmp_path / "categories.json").write_text(json.dumps(names))
    write_list(tmp_path / "iNaturalist18_train.txt", "a.jpg 0", "b.jpg 1")
    write_list(tmp_path / "iNaturalist18_val.txt", "c.jpg 1")
    source = open_source("inat2018", tmp_path)
    assert [item.name for item in source.classes] == ["Bombus terrestris", "Apis mellifera"]
    assert source.val is None
    assert source.test is not None
    assert source.test.labels_N.tolist() == [1]
    (tmp_path / "categories.json").write_text('[{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]')
    with pytest.raises(DataError, match=r"categories\.json: ids must run 0, 1, 2"):
        open_source("inat2018", tmp_path)
    (tmp_path / "categories.json").unlink()
    with pytest.raises(DataError, match=r"categories\.json is missing: it comes with iNaturalist 2018"):
        open_source("inat2018", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.jpg", r"Places_LT_train\.txt line 2: 'b\.jpg' must be a path, a space and a label"),
        ("b.jpg one", "line 2: 'b.jpg one' must be a path"),
        ("b.jpg 365", r"line 2: label '365' is not in the class list"),
        ("../b.jpg 3", r"line 2: path '\.\./b\.jpg' leads out of"),
        ("/etc/b.jpg 3", r"line 2: path '/etc/b\.jpg' leads out of"),
        ("x/../../b.jpg 3", "leads out of"),
        ("b\0.jpg 3", "line 2: the name holds a zero byte"),
    ],
)
def test_mistakes_in_a_list_are_named_or_skipped_and_listed(line: str, message: str, tmp_path: Path) -> None:
    write_list(tmp_path / "Places_LT_train.txt", "a.jpg 0", line, "c.jpg 2")
    for split in ("val", "test"):
        write_list(tmp_path / f"Places_LT_{split}.txt", "a.jpg 0")
    with pytest.raises(DataError, match=message):
        open_source("places_lt", tmp_path)
    place = Place.of(PrepareParams(source="places_lt", root=str(tmp_path), skip_bad=True))
    if "must be a path" in message:  # not a row at all: the list itself is wrong
        with pytest.raises(DataError, match=message):
            open_at("places_lt", place)
        return
    assert open_at("places_lt", place).pool.labels_N.tolist() == [0, 2]
    (listed,) = place.log.left_out
    assert listed.startswith("Places_LT_train.txt line 2: ")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Places_LT_train\.txt is missing: put the benchmark's list files"):
        open_source("places_lt", tmp_path)
    with pytest.raises(DataError, match=r"prepare\.image_root = .*/none: there is no such folder"):
        open_source("places_lt", tmp_path, image_root=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("places365", 365), ("imagenet", 1000)]
)
def test_shipped_names_are_distinct_once_told_apart(name: str, classes: int) -> None:
    shown = {(item.name, item.disambiguation) for item in shipped_class_list(name)}
    assert len(shown) == classes
    assert all(text.strip() == text for text, _ in shown)
