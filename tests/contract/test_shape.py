"""The house keeps its shape: few whole files, one name for one thing, a short way from the command to the optimiser."""

from __future__ import annotations

from tools.shape import measure


def test_the_library_is_cut_by_concept() -> None:
    figures = measure()
    assert figures["files"] <= 150
    assert figures["median_lines"] >= 130
    assert figures["longest_file_lines"] <= 450, figures["longest_file"]
    assert figures["files_to_follow_tune"] <= 15, figures["route"]
    assert figures["names_in_several_rooms"] == []
