"""Settings, data and the state of Git and DVC behind a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import git
import pytest
import yaml

from mdpr import __version__
from mdpr.mlops.lineage import describe_data, flatten, lineage_tags, run_name, settings_before
from mdpr.params import TuneParams


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> git.Repo:
    """A repository with one commit of code.py and dvc.lock, and the environment that DVC gives a stage."""
    md5 = {"data/prepared": "aa.dir", "data/model": "bb.dir"}
    stages = {"prepare": {"outs": [{"path": "data/prepared", "md5": md5["data/prepared"]}]}}
    stages |= {
        "tune": {"deps": [], "outs": [{"path": "data/model", "md5": md5["data/model"]}]},
        "lint": {"cmd": "x"},
    }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    (tmp_path / "code.py").write_text("pass\n")
    repository = git.Repo.init(tmp_path)
    repository.index.add(["code.py", "dvc.lock"])
    author = git.Actor("A", "a@example.org")
    repository.index.commit("first", author=author, committer=author)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    return repository


def test_tags_name_commit_and_inputs(repository: git.Repo) -> None:
    assert lineage_tags([Path("data/prepared"), Path("data/unknown")]) == {
        "mdpr.version": __version__,
        "mlflow.source.git.commit": repository.head.commit.hexsha,
        "mdpr.git.dirty": "false",
        "dvc.md5.data/prepared": "aa.dir",
    }


def test_only_changed_code_is_dirty(repository: git.Repo) -> None:
    root = Path(repository.working_dir)
    (root / "dvc.lock").write_text("stages: {}\n")  # DVC rewrites it while stages run
    (root / "new.txt").write_text("not tracked")
    assert lineage_tags()["mdpr.git.dirty"] == "false"
    (root / "code.py").write_text("changed\n")
    assert lineage_tags()["mdpr.git.dirty"] == "true"


def test_what_is_not_there_gives_no_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("KFP_RUN_ID", "run-7")
    assert lineage_tags([Path("data/prepared")]) == {"mdpr.version": __version__, "kfp.run_id": "run-7"}
    git.Repo.init(tmp_path)  # a repository without a commit
    assert "mlflow.source.git.commit" not in lineage_tags()


def test_flatten_joins_keys_by_dots() -> None:
    flat = flatten({"tune": TuneParams(), "a": {"b": {"c": 1}, "d": [1, 2]}})
    assert flat["tune.loss.prior_alignment"] == TuneParams().loss.prior_alignment
    assert flat["a.b.c"] == 1
    assert flat["a.d"] == [1, 2]
    assert "tune.loss" not in flat


def test_settings_of_every_stage_before_come_from_dvc(repository: git.Repo) -> None:
    root = Path(repository.working_dir)
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    lock["stages"]["prepare"]["params"] = {"params.yaml": {"prepare": {"seed": 3}}}
    lock["stages"]["encode"] = {
        "params": {"params.yaml": {"encode": {"normalize": True}, "backbone": {"device": "cpu"}}}
    }
    lock["stages"]["evaluate"] = {"params": {"params.yaml": {"evaluate": {"batch_size": 1}}}}
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    found = settings_before(root / "data" / "prepared")
    assert found == {"prepare.seed": 3, "encode.normalize": True, "backbone.device": "cpu"}


def test_elsewhere_the_data_card_has_those_of_prepare(
    encoded: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert settings_before(encoded["prepared"])["prepare.max_images_per_class"] == 60
    assert "training images of 10 classes" in describe_data(encoded["prepared"])


def test_a_run_is_called_by_its_settings_or_by_its_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    name = run_name(TuneParams(seed=7))
    assert "maple" in name
    assert "seed 7" in name
    monkeypatch.setenv("DVC_EXP_NAME", "eager-newt")
    assert run_name(TuneParams()) == "eager-newt"
