"""Faults planted in a prepared data set, each found by the expectation that is there for it."""

import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mdpr.artifacts import ClassInfo, read_classes, read_images, sha256, write_classes, write_images, write_json
from mdpr.data.checks import Finding, Findings, raise_for_errors
from mdpr.errors import ArtifactError, CheckFailed
from mdpr.params import Params, PrepareParams, ValidateParams
from mdpr.stages.stage import load_stage, run_stage

MakeSource = Callable[..., Path]
Row = dict[str, Any]


@pytest.fixture
def prepared(make_parquet: MakeSource, tmp_path: Path) -> Path:
    params = PrepareParams(
        source="parquet",
        root=str(make_parquet()),
        max_images_per_class=20,
        imbalance_ratio=4,
        val_images_per_class=5,
    )
    run_stage(load_stage("prepare"), {"prepared": tmp_path / "prepared"}, Params(prepare=params))
    return tmp_path / "prepared"


def validate(prepared: Path, **params: Any) -> dict[str, Any]:
    paths = {"prepared": prepared, "validation": prepared.parent / "validation"}
    run_stage(load_stage("validate"), paths, Params(validate=ValidateParams(**params)))
    return json.loads((paths["validation"] / "result.json").read_text())


def failures(prepared: Path) -> dict[tuple[str, str], str]:
    """(table, expectation) -> what was observed, of all that failed."""
    found = json.loads((prepared.parent / "validation.failed" / "result.json").read_text())
    assert found["success"] is False
    return {(item["table"], item["name"]): item["observed"] for item in found["expectations"] if not item["success"]}


def edit(prepared: Path, split: str, change: Callable[[list[Row]], None]) -> None:
    rows = [
        {"image": {"bytes": image, "path": path}, "label": label}
        for image, path, label in read_images(prepared / f"{split}.parquet")
    ]
    change(rows)
    write_images(
        prepared / f"{split}.parquet",
        [row["image"]["bytes"] for row in rows],
        [row["image"]["path"] for row in rows],
        [row["label"] for row in rows],
    )


def test_a_sound_set_passes_with_the_same_bytes_each_time(prepared: Path) -> None:
    result = validate(prepared)
    first = sha256(prepared.parent / "validation")
    assert result["success"] is True
    assert all(item["success"] for item in result["expectations"])
    assert {item["table"] for item in result["expectations"]} == {"train", "val", "test", "classes", "profile"}
    validate(prepared)
    assert sha256(prepared.parent / "validation") == first


def test_data_docs_load_nothing_from_elsewhere(prepared: Path) -> None:
    validate(prepared)
    pages = sorted((prepared.parent / "validation").glob("*.html"))
    assert [page.stem for page in pages] == ["classes", "index", "profile", "test", "train", "val"]
    for page in pages:
        text = page.read_text()
        assert not re.search(r"https?://|<script|<link|<img|@import|url\(", text)
        links = set(re.findall(r'href="([^"#]+)"', text))
        assert links
        assert all((page.parent / link).is_file() for link in links)
    assert "✓" in (prepared.parent / "validation" / "index.html").read_text()


def test_each_planted_fault_is_found_and_nothing_else(prepared: Path) -> None:
    record = read_images(prepared / "train.parquet")[3]
    stolen = {"bytes": record.image, "path": record.path}
    first, *others = read_classes(prepared)
    edit(prepared, "test", lambda rows: rows[2].update(image=stolen))
    edit(prepared, "test", lambda rows: rows[0].update(label=3))
    edit(prepared, "test", lambda rows: rows[4]["image"].update(bytes=b"\x89PNG\r\n"))
    edit(prepared, "val", lambda rows: rows.pop())
    write_classes(prepared, [first.model_copy(update={"train_images": 19}), *others])
    with pytest.raises(CheckFailed, match=r"^label_in_class_list fails in test: 1 of 12 .*; 5 more; see .*\.failed$"):
        validate(prepared)
    found = failures(prepared)
    expected = {
        ("test", "no_duplicate_across_splits"): r"1 of 12 unexpected \(row 2, train/\d+: train row 3, train/\d+\)",
        ("test", "one_label_for_an_image"): r"1 of 12 unexpected \(row 2, train/\d+: train row 3, train/\d+\)",
        ("test", "label_in_class_list"): r"1 of 12 unexpected \(row 0, test/0: 3\)",
        ("test", "decodes"): r"1 of 12 unexpected \(row 4, test/4: the image .*\)",
        ("profile", "val_is_balanced"): r"1\.25",
        ("classes", "class_counts_as_declared"): r"1 of 3 unexpected \(row 0, ant: .*20.*19.*\)",
    }
    assert found.keys() == expected.keys()
    for key, pattern in expected.items():
        assert re.fullmatch(pattern, found[key]), found[key]


def test_look_alikes_across_splits_are_a_warning_an_error_or_nothing(prepared: Path) -> None:
    """A picture of train is in test as a JPEG: other pixels, and the same picture."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(read_images(prepared / "train.parquet")[3].image)) as original:
        original.save(stream, "JPEG", quality=95)
    edit(prepared, "test", lambda rows: rows[2]["image"].update(bytes=stream.getvalue()))
    (finding,) = [item for item in validate(prepared)["expectations"] if not item["success"]]
    assert (finding["table"], finding["name"]) == ("test", "no_near_duplicate_across_splits")
    assert finding["level"] == "warning"
    assert re.match(r"1 of 12 unexpected \(row 2, test/2: train row 3, train/\d+ \(0 bits", finding["observed"])
    assert 'alt="row 2" src="data:image/png' in (prepared.parent / "validation" / "index.html").read_text()
    assert all(item["success"] for item in validate(prepared, near_duplicates="off")["expectations"])
    with pytest.raises(CheckFailed, match=r"^no_near_duplicate_across_splits fails in test: 1 of 12"):
        validate(prepared, near_duplicates="error")


def test_text_that_is_not_utf8_or_no_text(prepared: Path) -> None:
    image = pa.array([{"bytes": record.image, "path": "x"} for record in read_images(prepared / "val.parquet")])
    names = pa.array([b"caf\xe9.png"] * len(image), pa.binary()).view(pa.string())
    image = pa.StructArray.from_arrays([image.field("bytes"), names], ["bytes", "path"])
    labels = read_images(prepared / "val.parquet").labels_N
    pq.write_table(pa.table({"image": image, "label": labels}), prepared / "val.parquet", compression="none")
    first, *others = read_classes(prepared)
    write_classes(prepared, [first.model_copy(update={"name": "caf\ufffd"}), *others])
    with pytest.raises(CheckFailed, match=r"path_is_utf8 fails in val: 15 of 15 .*caf.xe9\.png' is not UTF-8"):
        validate(prepared)
    assert failures(prepared)["classes", "class_names_are_text"].startswith("1 of 3 unexpected (row 0, caf")


@pytest.mark.parametrize("profile", ["step", "pareto"])
def test_every_profile_is_held_to_what_it_declares(profile: str, make_parquet: MakeSource, tmp_path: Path) -> None:
    params = PrepareParams.model_validate(
        {"source": "parquet", "root": str(make_parquet()), "profile": profile, "class_order": "shuffled"}
        | {"max_images_per_class": 10, "imbalance_ratio": 5, "val_images_per_class": 5}
    )
    run_stage(load_stage("prepare"), {"prepared": tmp_path / "prepared"}, Params(prepare=params))
    assert validate(tmp_path / "prepared")["success"] is True
    card = json.loads((tmp_path / "prepared" / "card.json").read_text())
    write_json(tmp_path / "prepared" / "card.json", {**card, "imbalance_ratio": 3})
    with pytest.raises(CheckFailed, match=r"imbalance_ratio_as_declared fails in profile: 5\.0"):
        validate(tmp_path / "prepared")


def test_missing_class_and_empty_split(prepared: Path) -> None:
    edit(prepared, "val", lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["label"] != 2]))
    edit(prepared, "test", lambda rows: rows.clear())
    with pytest.raises(CheckFailed):
        validate(prepared)
    found = failures(prepared)
    assert found["classes", "every_class_in_val"] == "1 of 3 unexpected (row 2, cat: 0)"
    assert found["classes", "every_class_in_test"] == "3 of 3 unexpected (row 0, ant: 0; row 1, bee: 0; row 2, cat: 0)"
    assert found["test", "has_images"] == "0"
    assert ("classes", "every_class_in_train") not in found


def test_repeated_image_in_one_split_is_only_a_warning(prepared: Path) -> None:
    labels = read_images(prepared / "train.parquet").labels_N.tolist()
    again = labels.index(labels[0], 1)
    edit(prepared, "train", lambda rows: rows[again].update(image=rows[0]["image"]))
    result = validate(prepared)
    assert [(item["table"], item["name"], item["level"]) for item in result["expectations"] if not item["success"]] == [
        ("train", "no_repeated_image", "warning")
    ]


def test_wrong_declared_ratio(prepared: Path) -> None:
    card = json.loads((prepared / "card.json").read_text())
    write_json(prepared / "card.json", {**card, "imbalance_ratio": 5})
    with pytest.raises(CheckFailed, match=r"imbalance_ratio_as_declared fails in profile: 4\.0"):
        validate(prepared)
    assert validate(prepared, profile_tolerance=0.3)["success"] is True


def test_names_that_repeat_need_a_disambiguation(prepared: Path) -> None:
    def rename(*disambiguations: str | None) -> None:
        classes = [
            ClassInfo(**{**item.model_dump(), "name": "crane", "disambiguation": text})
            for item, text in zip(read_classes(prepared), disambiguations, strict=True)
        ]
        write_classes(prepared, classes)

    rename("bird", None, None)
    with pytest.raises(CheckFailed, match=r"class_names_distinct fails in classes: 2 of 3"):
        validate(prepared)
    rename("bird", "machine", None)
    assert validate(prepared)["success"] is True


def test_sides_out_of_bounds(prepared: Path) -> None:
    with pytest.raises(CheckFailed, match=r"width_within_bounds fails in train: 35 of 35 .*row 0, .*: 20.*; 5 more"):
        validate(prepared, min_side_px=21)


def test_a_file_that_is_no_split(prepared: Path) -> None:
    (prepared / "val.parquet").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"val\.parquet is not a readable Parquet file"):
        validate(prepared)


def test_only_errors_raise() -> None:
    def findings(*levels: str) -> Findings:
        items = [
            Finding.model_validate({"name": f"n{i}", "table": "t", "level": level, "success": False, "observed": "x"})
            for i, level in enumerate(levels)
        ]
        return Findings(success="error" not in levels, expectations=tuple(items))

    raise_for_errors(findings("warning", "warning"))
    with pytest.raises(CheckFailed, match=r"^n1 fails in t: x; 1 more$"):
        raise_for_errors(findings("warning", "error", "error"))


def test_blank_pictures_are_a_finding_of_their_own_and_no_duplicates(
    prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (255, 255, 254)).save(stream, "PNG")
    for split in ("train", "test"):
        edit(prepared, split, lambda rows: rows[2]["image"].update(bytes=stream.getvalue()))
    failed = [item for item in validate(prepared)["expectations"] if not item["success"]]
    assert [(item["table"], item["name"], item["level"]) for item in failed] == [
        ("train", "not_blank", "warning"),
        ("test", "not_blank", "warning"),
    ]
    assert "row 2, test/2: #fffffe" in failed[1]["observed"]
    assert "not_blank in test" in caplog.text


def test_one_picture_under_two_labels_is_an_error(prepared: Path) -> None:
    labels = read_images(prepared / "train.parquet").labels_N.tolist()
    other = next(row for row, label in enumerate(labels) if label != labels[0])
    edit(prepared, "train", lambda rows: rows[other].update(image=rows[0]["image"]))
    with pytest.raises(CheckFailed, match=rf"^one_label_for_an_image fails in train: 1 of 35 .*row {other}, .* row 0"):
        validate(prepared)


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=alert(2)>",
        "<script>alert(1)</script>",
        '"><svg/onload=1>',
        "[x](javascript:x)",
        "$x {y} %s",
    ],
)
def test_names_of_classes_and_files_are_text_on_every_page(name: str, prepared: Path) -> None:
    first, second, *others = read_classes(prepared)
    write_classes(prepared, [item.model_copy(update={"name": name}) for item in (first, second)] + others)
    edit(prepared, "train", lambda rows: rows[5].update(image={"bytes": rows[1]["image"]["bytes"], "path": name}))
    edit(prepared, "test", lambda rows: rows[5]["image"].update(path=name, bytes=b"?"))
    with pytest.raises(CheckFailed):
        validate(prepared)
    for page in (prepared.parent / "validation.failed").glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<(img(?! alt=\"row )|script|svg)", text), page
    assert html.escape(name) in (prepared.parent / "validation.failed" / "classes.html").read_text()


def test_classes_for_training_only_are_no_error(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"train": (9, 9, 1), "test": (4, 4, 0)})
    settings = {"source": "folder", "root": str(root), "profile": "natural", "small_classes": "train_only"}
    params = PrepareParams.model_validate(settings)
    run_stage(load_stage("prepare"), {"prepared": tmp_path / "prepared"}, Params(prepare=params))
    result = validate(tmp_path / "prepared")
    failed = {(item["name"], item["level"]) for item in result["expectations"] if not item["success"]}
    assert failed == {
        ("every_class_in_val", "warning"),
        ("every_class_in_test", "warning"),
        ("val_is_balanced", "warning"),
    }
