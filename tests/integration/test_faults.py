"""The short form of the fault campaign (benchmarks/faults.py): parts that no test of one module covers."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.hostile_names import HOSTILE, chain, foreign_markup, refused_names, unprintable
from benchmarks.trial_project import call_mdpr

from mdpr.mlops.store import Store

pytestmark = pytest.mark.integration


def test_a_hostile_name_is_refused_in_one_line_or_is_text_in_all_that_nine_stages_make(
    store: Store, tmp_path: Path
) -> None:
    refused = refused_names(tmp_path / "refused")
    assert set(refused.values()) == {""}
    assert set(refused) == {name for name in HOSTILE if unprintable(name) and name != "\u202egnp"} | {"two\nlines"}
    assert list(chain(tmp_path / "chain", [name for name in HOSTILE if name not in refused])) == []


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(2)>", "<script>alert(1)</script>", '"><svg/onload=1>'])
def test_a_name_that_a_page_does_not_escape_would_be_found(name: str) -> None:
    assert foreign_markup(f'<p title="{name}">{name}</p>')
    assert foreign_markup(f"<script>var names = ['</script>{name}'];</script>")


def test_a_traceback_and_a_usage_error_are_not_one_line_for_the_user(tmp_path: Path) -> None:
    ends = [call_mdpr(arguments, tmp_path) for arguments in (["tune", "--no-such"], ["prepare", "--prepared", "out"])]
    assert [end.code for end in ends] == [2, 2]
    assert [end.is_one_line for end in ends] == [False, True]
