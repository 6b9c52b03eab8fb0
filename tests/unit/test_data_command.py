"""`mdpr data look`; `mdpr data import` before it asks any repository (test_data_remote.py has the rest)."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mdpr.commands.inputs import data as command
from mdpr.data.preparation import source_of
from mdpr.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("data/shoes", r"^data/shoes exists: remove it, or name another place with --out$"),
        ("no/where", r"^no does not exist: make it, or name another place with --out$"),
    ],
)
def test_a_place_that_cannot_be_used(out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "shoes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    arguments = ["import", "--repo", "https://example.org/shoes.git", "--path", "data/shoes", "--out", out]
    with pytest.raises(DataError, match=message):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_outside_a_project_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dvc", reason="needs DVC (pip install 'mdpr[pipeline]')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="not inside of a DVC repository") as caught:
        CliRunner().invoke(command, ["import", "--repo", ".", "--path", "data/x"], catch_exceptions=False)
    assert "\n" not in str(caught.value)


def looked(*arguments: str) -> str:
    result = CliRunner().invoke(command, ["look", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_look_shows_splits_classes_the_text_of_each_and_what_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in {"train/fire_truck": 3, "train/ant": 2, "test/ant": 1, "test/fire_truck": 1}.items():
        (tmp_path / name / "@eaDir").mkdir(parents=True)
        for index in range(count):
            (tmp_path / name / f"{index}.jpg").touch()  # no image is opened
        for index in range(50):
            (tmp_path / name / f"{index}.txt").touch()
    (tmp_path / "params.yaml").write_text("probe: {templates: ['an {} in the wild.']}\nprepare: {profile: natural}\n")
    monkeypatch.chdir(tmp_path)
    lines = looked(".").splitlines()
    assert "prepare.source = folder" in lines[0]
    assert [line.split()[:2] for line in lines[1:4]] == [["train", "5"], ["val", "none:"], ["test", "2"]]
    rows = [line.split() for line in lines if line.strip().startswith(("0", "1"))]
    assert rows == [
        ["0", "ant", "2", "1", *["an", "ant", "in", "the", "wild."]],
        ["1", "fire_truck", "3", "1", *["an", "fire", "truck", "in", "the", "wild."]],
    ]
    assert any("4 hidden or system folders" in line for line in lines)
    (suffixes,) = [line for line in lines if ".txt" in line]
    assert "200 files with the suffix .txt" in suffixes
    assert suffixes.count(".txt") == 4
    assert len(lines) < 15


def test_look_says_why_prepare_would_stop_and_takes_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in {"house/cat": 3, "house/dog": 3, "wild/fox": 1}.items():
        (tmp_path / name).mkdir(parents=True)
        for index in range(count):
            (tmp_path / name / f"{index}.jpg").touch()
    monkeypatch.chdir(tmp_path)
    deep = looked(".", "--class-depth", "2", "--classes", "1", "--set", "prepare.profile=natural")
    assert "and 2 more: --classes 3 shows all" in deep
    assert "3 classes" in deep
    assert "a {y} of cat, cat" in looked(".", "--class-depth", "2", "--set", "probe.templates=['a {y} of {}, {}']")
    small = looked(".", "--class-depth", "2", "--set", "prepare.min_images_per_class=2")
    assert "prepare would stop: class 2 (fox) has 1 images" in small
    dropped = looked(".", "--class-depth", "2", "--set", "prepare.small_classes=drop")
    assert "dropped 1 small classes, with images: fox (1)" in dropped
    (tmp_path / "wild/owl").mkdir()
    (tmp_path / "wild/owl/0.heic").touch()
    without = looked("wild")
    assert ".heic: convert them to JPEG" in without
    assert "prepare would stop: train: class 1 (owl) has no image" in without
    (tmp_path / "house/cat/broken.jpg").symlink_to("nowhere.jpg")
    assert "prepare would stop for these" in looked("house")
    assert "prepare would stop" not in looked("house", "--set", "prepare.skip_bad=true")


@pytest.mark.parametrize(
    ("name", "source"),
    [("images.csv", "csv"), ("pool.parquet", "parquet"), ("Places_LT_train.txt", "places_lt"), ("cat", "folder")],
)
def test_the_source_is_the_one_whose_files_are_there(name: str, source: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert source_of(tmp_path) == source


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        looked("nowhere")


def test_look_takes_the_depth_of_classes_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/cat", "a/dog", "b/deep/eel"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert "3 classes" in looked("set", "--class-depth", "leaf")
    assert "2 classes" in looked("set", "--class-depth", "top")
    with pytest.raises(ConfigError, match="class_depth"):
        looked("set", "--class-depth", "x")
