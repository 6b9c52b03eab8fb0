"""Text files between stages: digests of what is there, tables whose texts stay texts wherever they are opened."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.hostile_names import HOSTILE
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mdpr.artifacts import Knowledge, sha256, write_csv
from mdpr.artifacts.formats import parse, read_csv
from mdpr.errors import ArtifactError


def test_a_folder_s_digest_follows_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a").write_text("1")
    first = sha256(folder)
    (folder / "deep/a").rename(folder / "deep/b")
    second = sha256(folder)
    (folder / "deep/b").write_text("2")
    assert len({first, second, sha256(folder), sha256(folder / "deep/b")}) == 4


@pytest.mark.parametrize("target", ["nothing", "pipe"])
def test_what_is_not_there_has_no_digest(tmp_path: Path, target: str) -> None:
    (tmp_path / "pipe").symlink_to("nowhere")
    with pytest.raises(ArtifactError, match=f"{target} is missing"):
        sha256(tmp_path / target)


# A text of blanks alone, or with a line break, is not a name that CSV keeps apart from no text, or in one line.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\n"), min_size=1, max_size=20)


@given(st.lists(TEXTS | st.text("'=<\\/!-@a", min_size=1, max_size=6), min_size=1, max_size=5))
@example(list(HOSTILE))
@settings(max_examples=60, deadline=None)
def test_every_text_is_read_back_and_is_neither_a_formula_nor_markup(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    write_csv(path, pd.DataFrame({"class": texts, "value": range(len(texts))}))
    assert list(read_csv(path, "evaluate", {"class": str, "value": int})["class"]) == texts
    written = pd.read_csv(path, dtype=str, keep_default_na=False)["class"]
    assert not written.str.startswith(("=", "+", "-", "@", "\t", "\r")).any()
    in_a_script = json.dumps(list(written))
    assert "</" not in in_a_script
    assert "<!" not in in_a_script


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", pd.DataFrame(columns=["variant", "gain"]))
    table = read_csv(tmp_path / "a.csv", "evaluate", {"variant": str, "gain": float}, may_be_empty=True)
    assert list(table.columns) == ["variant", "gain"]


@pytest.mark.parametrize("content", [5, None, "x", [1]])
def test_a_json_file_that_is_no_object_is_named_as_a_whole(content: object) -> None:
    with pytest.raises(ArtifactError, match=r"^a/b\.json: the content = .*: must "):
        parse(Path("a/b.json"), Knowledge, content)
