"""A model's life on own images: a first one, more images, a class more, and back; every stage is the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from benchmarks.life import NEW_CLASS, Life, Pictures, moved

from mdpr.artifacts import read_card, read_json
from mdpr.data.stable_splits import Previous
from mdpr.errors import DataError
from mdpr.mlops import promotions
from mdpr.mlops.registry import CHAMPION
from mdpr.mlops.store import Store

pytestmark = pytest.mark.integration
FEW, MANY = 12, 20
SMALL = ("tune.epochs=1", "tune.context_tokens=4", "tune.prompt_depth=2", "tracking.model_name=shoes")


@pytest.fixture
def lenient(project_root: Path, tmp_path: Path) -> Path:
    """The shipped policy, which so few test images could never satisfy, with margins that any model passes."""
    policy = yaml.safe_load((project_root / "mlflow" / "promotion.yaml").read_text())
    for rules in (policy["first_model"], policy["later_models"], policy["later_models"]["with_new_classes"]):
        rules["margin_points"] = {"all": -100.0}
    policy["later_models"]["tolerance_points"] = {}
    policy["later_models"]["with_new_classes"]["tolerance_points"] = 100.0
    policy["first_model"]["max_ece_percent"] = policy["later_models"]["max_ece_increase_points"] = 100.0
    policy["later_models"]["max_latency_ratio"] = 1000.0
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    return tmp_path / "policy.yaml"


def test_images_come_a_class_comes_and_back(store: Store, lenient: Path, tmp_path: Path) -> None:
    life = Life(tmp_path, Pictures(), lenient, SMALL)
    names = ["dress", "sandal", "trouser"]

    life.prepare("first", dict.fromkeys(names, FEW))
    promotion = life.train("first")
    assert (promotion.decision, promotion.champion_before, promotion.champion_after) == ("promoted", None, "1")

    second = life.prepare("second", dict.fromkeys(names, MANY), "first")
    since = read_card(second).since
    assert since is not None
    assert (since.moved, since.stayed, since.went) == (0, 3 * FEW, 0)
    assert moved(tmp_path / "first" / "prepared", second) == 0
    promotion = life.train("second")
    assert (promotion.decision, promotion.champion_before, promotion.champion_after) == ("promoted", "1", "2")

    third = life.prepare("third", dict.fromkeys([NEW_CLASS, *names], MANY), "second")
    assert moved(second, third) == 0
    promotion = life.train("third")
    assert (promotion.decision, promotion.champion_before, promotion.champion_after) == ("promoted", "2", "3")

    promotions.rollback("shoes")
    assert str(store.client.get_model_version_by_alias("shoes", CHAMPION).version) == "2"


def test_dvc_repro_keeps_the_splits_of_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC removes data/prepared before the stage runs, and `prepare.previous` finds it in the cache."""
    pytest.importorskip("dvc", reason="needs dvc (pip install 'mdpr[pipeline]')")
    project, pictures = tmp_path / "project", Pictures()
    pictures.write(project / "images", {"dress": 8, "sandal": 8})

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    settings = {"source": "folder", "root": "images", "profile": "natural"}
    stage = {"cmd": f"{sys.executable} -m mdpr prepare --prepared data/prepared", "params": ["prepare"]}
    (project / "params.yaml").write_text(yaml.safe_dump({"prepare": settings}))
    (project / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"prepare": stage | {"deps": ["images"], "outs": ["data/prepared"]}}})
    )
    (project / ".gitignore").write_text("/images\n")
    dvc = (sys.executable, "-m", "dvc")
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m")
    run("git", "init", "--quiet")
    run(*dvc, "init", "--quiet")
    run(*git, "empty")
    run("git", "branch", "empty")
    run(*dvc, "repro", "--quiet")
    run("git", "add", "--all")
    run(*git, "first")
    run("git", "tag", "sets/v1")
    pictures.write(project / "more", {"dress": 20})
    for file in (project / "more" / "dress").iterdir():
        file.rename(project / "images" / "dress" / file.name)
    (project / "params.yaml").write_text(yaml.safe_dump({"prepare": settings | {"previous": "HEAD"}}))
    run(*dvc, "repro", "--quiet")
    since = read_json(project / "data" / "prepared" / "card.json")["since"]
    assert {key: since[key] for key in ("stayed", "moved", "came", "went")} == {
        "stayed": 16,
        "moved": 0,
        "came": 12,
        "went": 0,
    }
    (project / "params.yaml").write_text(yaml.safe_dump({"prepare": settings | {"previous": "no-such-tag"}}))
    done = subprocess.run([*dvc, "repro", "--quiet"], cwd=project, capture_output=True, text=True)
    assert done.returncode != 0
    assert "data/prepared/pictures.parquet at no-such-tag cannot be read" in done.stderr
    monkeypatch.chdir(project)
    assert sum(len(split.image_N) for split in Previous.read("sets/v1").pictures.values()) == 16
    for name, fix in {"sets/v2": "name a Git revision", "empty": "name a revision at which DVC tracks it"}.items():
        with pytest.raises(DataError, match=rf"^prepare\.previous = {name}: .*{fix}"):
            Previous.read(name)
