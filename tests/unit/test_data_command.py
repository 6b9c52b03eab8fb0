"""`mdpr data import` before it asks any repository (tests/integration/test_data_remote.py has the rest)."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mdpr.commands.data import command
from mdpr.errors import DataError


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
