"""The files of a team's project; tests/integration/test_project.py runs one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mdpr import project
from mdpr.cli import cli
from mdpr.errors import ConfigError, MdprError
from mdpr.project import Choices, packaged, project_dvc_yaml, project_files
from mdpr.stages.stage import STAGES


@pytest.fixture(scope="module")
def repository() -> str:
    return packaged("dvc.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("embedded", [True, False])
def test_a_project_watches_the_package_instead_of_its_source(repository: str, embedded: bool) -> None:
    content = yaml.safe_load(project_dvc_yaml(repository, embedded_backbone=embedded))
    assert list(content["stages"]) == list(STAGES)
    for stage in content["stages"].values():
        assert stage["deps"].count(project.VERSION_FILE) == 1
        assert not [path for path in stage["deps"] if path.startswith("src/")]
    paths = [path for stage in content["stages"].values() for path in stage["deps"]]
    assert any(path.startswith("data/embedded") for path in paths) is embedded
    assert "${describe.path}" in paths


def test_images_become_the_source_in_the_settings() -> None:
    files = dict(project_files(Choices(images="/data/set #2")))
    params = yaml.safe_load(files["params.yaml"])
    assert params["prepare"] | {"source": "folder", "root": "/data/set #2"} == params["prepare"]
    assert "mdpr data look '/data/set #2' " in files["README.md"]


@pytest.mark.parametrize("recipe", ["own-data", "cifar10-lt", "emblems-lt"])
def test_the_readme_names_the_images_of_the_recipe(recipe: str) -> None:
    files = dict(project_files(Choices(recipe)))
    root = yaml.safe_load(files["params.yaml"])["prepare"]["root"]
    assert f"mdpr data look {root} " in files["README.md"]
    assert "@" not in files["README.md"]


def test_a_graph_of_its_own_comes_only_if_it_is_wanted() -> None:
    assert not [name for name, _ in project_files(Choices()) if name.startswith("pipelines/")]
    own = [name for name, _ in project_files(Choices(with_pipeline=True))]
    assert "pipelines/__init__.py" in own
    assert any(name.startswith("components/tune/") for name in own)


def test_an_update_needs_the_record_that_init_wrote(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was not made by mdpr init"):
        project.update(tmp_path)
    (tmp_path / project.RECORD).write_text("{}")
    with pytest.raises(ConfigError, match="damaged"):
        project.update(tmp_path)
    with pytest.raises(ConfigError, match="was not made by mdpr init"):
        project.update(tmp_path / project.RECORD)
    (tmp_path / "other" / project.RECORD).mkdir(parents=True)
    with pytest.raises(ConfigError, match="damaged"):
        project.update(tmp_path / "other")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    for folder in (link, Path("/proc/new")):
        with pytest.raises(ConfigError, match="cannot be made"):
            project.create(folder, Choices())
    assert link.is_symlink()


def test_a_project_may_lie_in_a_folder_that_git_ignores_before_it_exists(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("demo/\n")
    assert project.create(tmp_path / "demo", Choices())
    with pytest.raises(ConfigError, match="lies in the repository"):
        project.create(tmp_path / "shown", Choices())


def test_an_update_never_writes_over_a_change(tmp_path: Path) -> None:
    project.create(tmp_path / "team", Choices())
    folder = tmp_path / "team"
    record = json.loads((folder / project.RECORD).read_text())
    (folder / "dvc.yaml").write_text("ours\n")
    (folder / "mlflow/promotion.yaml").write_text("an older version\n")
    record["files"]["mlflow/promotion.yaml"] = project._digest("an older version\n")
    (folder / project.RECORD).write_text(json.dumps(record))
    report = project.update(folder)
    assert report.written == ["mlflow/promotion.yaml"]
    assert list(report.differences) == ["dvc.yaml"]
    assert (folder / "dvc.yaml").read_text() == "ours\n"
    assert project.update(folder).written == []


@pytest.mark.parametrize("arguments", [["init", "shoes"], ["demo", "--folder", "shoes"], ["repro"]])
def test_without_dvc_a_command_says_so_and_makes_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dvc", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MdprError, match=f"mdpr {arguments[0]} needs the package dvc"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
