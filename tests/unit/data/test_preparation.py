"""The stage prepare, run as the command line runs it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks.intake import CASES, Case, judge
from PIL import Image

from mdpr.artifacts import (
    PICTURES_FILE,
    SPLITS,
    image_digest,
    read_card,
    read_classes,
    read_images,
    read_pictures,
    sha256,
    write_images,
)
from mdpr.data.sources import Place, open_source
from mdpr.data.splits import cut_pool
from mdpr.errors import DataError, MdprError
from mdpr.params import Params, PrepareParams
from mdpr.stages.stage import load_stage, run_stage

MakeSource = Callable[..., Path]
CUT = {
    "max_images_per_class": 20,
    "imbalance_ratio": 4,
    "val_images_per_class": 5,
    "many_above": 15,
    "few_below": 10,
}


def prepare(source: str, root: Path, prepared: Path, **changes: object) -> Path:
    params = PrepareParams.model_validate({"source": source, "root": str(root), **CUT, **changes})
    run_stage(load_stage("prepare"), {"prepared": prepared}, Params(prepare=params))
    return prepared


def test_files_and_card_agree(make_parquet: MakeSource, tmp_path: Path) -> None:
    prepared = prepare("parquet", make_parquet(), tmp_path / "prepared")
    card = read_card(prepared)
    assert card.images_per_class == {"train": (20, 10, 5), "val": (5, 5, 5), "test": (4, 4, 4)}
    assert [(item.train_images, item.shot) for item in read_classes(prepared)] == [
        (20, "many"),
        (10, "medium"),
        (5, "few"),
    ]
    for split in SPLITS:
        file = prepared / f"{split}.parquet"
        assert tuple(np.bincount(read_images(file).labels_N)) == card.images_per_class[split]
        assert sha256(file) == card.sha256[file.name]
    assert (card.validation, card.seed, card.imbalance_ratio) == ("left_over", 0, 4)


def test_images_keep_their_bytes_and_their_class(make_parquet: MakeSource, tmp_path: Path) -> None:
    root = make_parquet()
    prepared = prepare("parquet", root, tmp_path / "prepared")
    pool = {row["image"]["bytes"]: row for row in pq.read_table(root / "pool.parquet").to_pylist()}
    kept = [row for split in ("train", "val") for row in read_images(prepared / f"{split}.parquet")]
    assert len({record.image for record in kept}) == 50
    for record in kept:
        source = pool[record.image]
        assert (record.path, record.label) == (source["image"]["path"], source["label"])
    test = read_images(prepared / "test.parquet")
    original = pq.read_table(root / "test.parquet").to_pylist()
    assert [record.image for record in test] == [row["image"]["bytes"] for row in original]


def test_same_parameters_same_bytes_wherever_the_source_lies(make_parquet: MakeSource, tmp_path: Path) -> None:
    first = prepare("parquet", make_parquet(), tmp_path / "first")
    again = prepare("parquet", make_parquet(folder="elsewhere"), tmp_path / "again")
    other = prepare("parquet", make_parquet(folder="third"), tmp_path / "other", seed=1)
    assert sha256(first) == sha256(again)
    assert sha256(first / "train.parquet") != sha256(other / "train.parquet")
    assert sha256(first / "test.parquet") == sha256(other / "test.parquet")


def test_the_shipped_set_gives_the_benchmark_s_cut(project_root: Path) -> None:
    root = project_root / "data" / "embedded" / "fashion-mnist"
    source = open_source("embedded", Place.of(PrepareParams(root=str(root))))
    cut = cut_pool(source.pool.labels_N, [item.name for item in source.classes], PrepareParams(), with_val=True)
    train_C = np.bincount(source.pool.labels_N[cut.train])
    assert train_C.tolist() == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
    assert np.bincount(source.pool.labels_N[cut.val]).tolist() == [200] * 10
    assert source.test is not None
    assert len(source.test.labels_N) == 10_000


def test_own_validation_split_is_taken_whole(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"train": (20, 10, 5), "val": (3, 2, 1), "test": (1, 1, 1)})
    card = read_card(prepare("folder", root, tmp_path / "prepared"))
    assert card.images_per_class["val"] == (3, 2, 1)
    assert card.validation == "source"


def test_natural_profile(make_csv: MakeSource, tmp_path: Path) -> None:
    card = read_card(prepare("csv", make_csv(), tmp_path / "prepared", profile="natural"))
    assert [train + val for train, val, _ in zip(*card.images_per_class.values(), strict=True)] == [30, 20, 15]
    assert min(card.images_per_class["val"]) >= 1
    assert card.validation == "train_share"


def test_row_groups_hold_at_most_a_thousand_images(
    make_parquet: MakeSource, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    root = make_parquet()
    write_images(root / "test.parquet", [png(0)] * 2300, ["x"] * 2300, [row % 3 for row in range(2300)])
    metadata = pq.read_metadata(prepare("parquet", root, tmp_path / "prepared") / "test.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1000, 1000, 300]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"train/bee/007\.png is empty"),
        (b"GIF89a", r"train/bee/007\.png"),
        (None, r"train/bee/007\.png cannot be decoded"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_a_bad_image_stops_it_and_leaves_nothing(
    data: bytes | None, message: str, make_folder: MakeSource, tmp_path: Path
) -> None:
    root = make_folder()
    image = root / "train" / "bee" / "007.png"
    image.write_bytes(image.read_bytes()[:-60] if data is None else data)
    with pytest.raises(DataError, match=message) as error:
        prepare("folder", root, tmp_path / "prepared", profile="natural")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_bad_row_of_a_parquet_file_is_named(make_parquet: MakeSource, tmp_path: Path) -> None:
    root = make_parquet()
    write_images(root / "test.parquet", [b"?", b"?", b"?"], ["a", "b", "c"], [0, 1, 2])
    with pytest.raises(DataError, match=r"test\.parquet row 0 \(a\) is not an image"):
        prepare("parquet", root, tmp_path / "prepared")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": (30, 20, 15), "test": (0, 0, 0)}, "test has 0 images"),
        ({"train": (30, 20, 15), "test": (4, 0, 4)}, r"test: class 1 \(bee\) has no image"),
        ({"train": (30, 20, 0), "test": (4, 4, 4)}, r"train: class 2 \(cat\) has no image"),
        ({"train": (30, 20, 9), "test": (4, 4, 4)}, r"class 2 \(cat\) has 9 images, but 5 for training and 5"),
        (
            {"train": (30, 20, 15), "val": (1, 0, 1), "test": (4, 4, 4)},
            r"val: class 1 \(bee\) has no image",
        ),
    ],
)
def test_too_few_images_are_named(
    counts: dict[str, tuple[int, ...]], message: str, make_folder: MakeSource, tmp_path: Path
) -> None:
    with pytest.raises(MdprError, match=message):
        prepare("folder", make_folder(counts), tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_of_the_benchmark_comes_out_right(case: Case, tmp_path: Path) -> None:
    right, lost, outcome = judge(case, tmp_path)
    assert right, outcome
    assert not lost


def own_images(root: Path, png: Callable[..., bytes], counts: dict[str, int], first: int = 0) -> Path:
    """CLASS/NNN.png, every fifth picture a second time as a JPEG."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            file = root / name / f"{number:03}.png"
            file.write_bytes(png(10_000 * label + number, 40))
            if number % 5 == 0:
                with Image.open(file) as image:
                    image.save(file.with_suffix(".jpg"), quality=95)
    return root


def split_of_each(prepared: Path) -> dict[str, str]:
    return {record.path: split for split in SPLITS for record in read_images(prepared / f"{split}.parquet")}


def test_own_images_stay_in_their_splits_when_others_come(png: Callable[..., bytes], tmp_path: Path) -> None:
    root = own_images(tmp_path / "images", png, {"bee": 40, "cat": 30})
    first = prepare("folder", root, tmp_path / "first", profile="natural")
    card, before = read_card(first), split_of_each(first)
    assert (card.cut_by, card.since) == ("content", None)
    assert card.alike is not None
    assert (card.alike.groups, card.alike.largest) == (14, 2)
    for path, split in before.items():
        if path.endswith(".jpg"):
            assert before[path.replace(".jpg", ".png")] == split
    own_images(root, png, {"ant": 20, "bee": 20}, first=100)
    (root / "cat" / "001.png").unlink()
    second = prepare("folder", root, tmp_path / "second", profile="natural", previous=str(first))
    after = split_of_each(second)
    assert all(after[path] == split for path, split in before.items() if path in after)
    since = read_card(second).since
    assert since is not None
    assert (since.stayed, since.moved, since.came, since.went) == (83, 0, 48, 1)
    alone = split_of_each(prepare("folder", root, tmp_path / "alone", profile="natural"))
    assert all(alone[path] == split for path, split in before.items() if path in alone)
    run_stage(load_stage("validate"), {"prepared": second, "validation": tmp_path / "validation"}, Params())


def test_pictures_of_every_split_are_kept_apart_by_digest_and_hash(make_parquet: MakeSource, tmp_path: Path) -> None:
    prepared = prepare("parquet", make_parquet(), tmp_path / "prepared", cut_by="order")
    assert read_card(prepared).cut_by == "order"
    pictures = read_pictures(prepared / PICTURES_FILE, "x")
    for split in SPLITS:
        images = read_images(prepared / f"{split}.parquet")
        assert pictures[split].image_N.tolist() == [image_digest(record.image) for record in images]


def test_a_class_of_one_picture_many_times_is_small(png: Callable[..., bytes], tmp_path: Path) -> None:
    root = own_images(tmp_path / "images", png, {"bee": 20, "cat": 20})
    (root / "ant").mkdir()
    for number in range(6):
        (root / "ant" / f"{number}.png").write_bytes(png(0, 40))
    with pytest.raises(DataError, match=r"class 0 \(ant\) has 1 different pictures"):
        prepare("folder", root, tmp_path / "refused", profile="natural")
    settings = {"profile": "natural", "small_classes": "drop"}
    card = read_card(prepare("folder", root, tmp_path / "dropped", **settings))
    assert card.dropped_classes == {"ant": 6}
    assert len(card.images_per_class["train"]) == 2


def test_duplicates_across_a_published_cut_are_a_warning(make_parquet: MakeSource, tmp_path: Path) -> None:
    root = make_parquet()
    rows = pq.read_table(root / "pool.parquet").to_pylist()
    one = next(row["image"]["bytes"] for row in rows if row["label"] == 0)
    images = [one if row["label"] == 0 else row["image"]["bytes"] for row in rows]
    write_images(root / "pool.parquet", images, ["x"] * len(rows), [row["label"] for row in rows])
    prepared = prepare("parquet", root, tmp_path / "prepared", cut_by="order")
    run_stage(load_stage("validate"), {"prepared": prepared, "validation": tmp_path / "validation"}, Params())
