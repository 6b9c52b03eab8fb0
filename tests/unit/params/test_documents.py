"""Files that people write: read strictly, each fault one line that names file and fix."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mdpr.data.class_list import read_class_list
from mdpr.errors import ArtifactError, ConfigError, MdprError
from mdpr.mlops.gate import read_policy
from mdpr.params import dump_yaml, parse_json, parse_yaml, read_json, read_yaml

DEEP = "[" * 50_000
TEXT = some.text(some.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]))  # settings hold no other


def test_files_that_are_missing_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist: run from the project folder"):
        read_yaml(tmp_path / "nothing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("tune:\n  epochs: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml line 3 is not valid YAML"):
        read_yaml(broken)
    broken.write_text("- tune\n")
    with pytest.raises(ConfigError, match="must hold sections"):
        read_yaml(broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tune:\n  epochs: 3\n  epochs: 5\n", r"file\.yaml line 3 is not valid YAML: epochs is given twice"),
        ("tune: {epochs: 3}\ntune: {seed: 5}\n", r"file\.yaml line 2 is not valid YAML: tune is given twice"),
        ("a: {b: {c: 1, c: 2}}", "c is given twice"),
        ("tune: {epochs: 010}", "010 may be octal or decimal: write 10"),
        ("tune: {epochs: 1:30}", "1:30 may be minutes or text"),
        ("tune: {epochs: 190:20:30.15}", "may be minutes or text"),
        ("tune: " + "[" * 900 + "]" * 900, "is nested too deeply"),
        (f"tune: {DEEP}", "is nested too deeply"),
        ("tune: !!python/object/apply:os.getcwd []", "is not valid YAML: could not determine a constructor"),
        ("tune: !!timestamp 2024-99-99", "is not valid YAML"),
        ("tune: a\x07b", "is not valid YAML: unacceptable character #x0007"),
        ("? [a]\n: 1", "is not valid YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file.yaml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(tmp_path / "file.yaml")
    assert "\n" not in str(caught.value)


def test_yaml_is_read_as_version_1_2_says() -> None:
    text = "{a: on, b: no, c: 2024-01-31, d: 1e-3, e: 0x1F, f: 0o17, g: 1_000, h: null, i: ~, j: True, k: .5, l: 12e03}"
    assert list(parse_yaml(text, "text").values()) == [
        "on", "no", "2024-01-31", 0.001, 31, 15, 1000, None, None, True, 0.5, 12000.0,
    ]  # fmt: skip
    assert parse_yaml("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}", "text")["more"] == {"x": 1, "y": 3}


@settings(deadline=None)
@given(
    some.recursive(TEXT | some.integers() | some.floats(allow_nan=False) | some.booleans() | some.none(), some.lists)
)
def test_what_is_dumped_is_read_back_as_it_was(value: object) -> None:
    assert parse_yaml(dump_yaml({"value": value}), "text") == {"value": value}


@pytest.mark.parametrize(
    "text", ["1e3", "010", "1:30", "0o17", "on", "No", "2024-01-31", "~", "", ".inf", "1_0", "<<", "="]
)
def test_text_that_looks_like_something_else_is_quoted(text: str) -> None:
    assert parse_yaml(dump_yaml({"value": text}), "text") == {"value": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('[{"b": {"c": 1, "c": 2}}]', "'c' is given twice"),
        ("[NaN]", "NaN is not a finite number"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ("[" + "9" * 5000 + "]", "is not valid JSON: Exceeds the limit"),
        (DEEP, "is nested too deeply"),
        ("{", "is not valid JSON"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        parse_json(text, "file.json", ArtifactError)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("file.json")


def test_what_is_not_a_regular_file_of_text_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(200 * 2**30)
    for read in (read_yaml, read_json):
        for name, message in (
            ("fifo", "is not a regular file"),
            ("", "is not a regular file"),
            ("sparse", "more than the limit"),
            ("latin", r"not UTF-8 \(byte 0\)"),
        ):
            with pytest.raises(ConfigError, match=message):
                read(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_yaml(tmp_path / "file") == read_json(tmp_path / "file") == {"a": 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("confidence: 0.95", "confidence: 0.95\nconfidence: 0.9", "confidence is given twice"),
        ("confidence: 0.95", "confidence: .inf", "confidence = inf"),
        ("confidence: 0.95", "confidense: 0.95", "confidense is not a setting; did you mean confidence"),
        ("confidence: 0.95", "confidence: 00", "00 may be octal"),
        ("max_ece_percent: 25", "max_ece: 0.25", "max_ece is not a setting; did you mean max_ece_percent"),
    ],
)
def test_the_policy_of_the_gate_is_read_by_the_same_rules(
    project_root: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (project_root / "mlflow" / "promotion.yaml").read_text("utf-8")
    assert old in text
    (tmp_path / "promotion.yaml").write_text(text.replace(old, new), "utf-8")
    with pytest.raises(ConfigError, match=message):
        read_policy(tmp_path / "promotion.yaml")


def test_a_class_list_is_read_by_the_same_rules(tmp_path: Path) -> None:
    item = {"index": 0, "name": "cat"}
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [item]})[:-1] + ', "classes": []}')
    with pytest.raises(MdprError, match="'classes' is given twice"):
        read_class_list(tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text(DEEP)
    with pytest.raises(MdprError, match="nested too deeply"):
        read_class_list(tmp_path / "classes.json")
