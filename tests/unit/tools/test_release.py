"""A tag is released only if package and changelog name its version."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.release import faults

from mdpr import __version__


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "src/mdpr").mkdir(parents=True)
    (tmp_path / "src/mdpr/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 - 2026-12-01\n")
    return tmp_path


def test_a_tag_that_package_and_changelog_name_may_be_released(project: Path) -> None:
    assert faults("v1.2.3", project) == []


def test_another_tag_and_a_missing_section_are_named(project: Path) -> None:
    (project / "CHANGELOG.md").write_text("# Changelog\n")
    tag, section = faults("v1.2.4", project)
    assert "v1.2.4" in tag
    assert "CHANGELOG" in section


def test_the_version_of_this_checkout_is_read() -> None:
    assert not [line for line in faults(f"v{__version__}") if line.startswith("the tag")]
