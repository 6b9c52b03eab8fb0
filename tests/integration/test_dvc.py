"""`dvc repro` on the real data with a smaller setting: from a fresh clone to a champion in a real MLflow store.

The tests of this file share one clone and run in order: each starts from what the one before left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from benchmarks.queued import queue_runs_lost
from tools.imports import stage_dependencies

from mdpr.artifacts import sha256
from mdpr.stages.stage import STAGES

Run = Callable[..., str]

pytestmark = pytest.mark.integration

SETTINGS = {
    "prepare": {
        "max_images_per_class": 300,
        "imbalance_ratio": 20,
        "val_images_per_class": 20,
        "test_from": "share",  # 240 test images per class; the archive's own are 1,000
    },
    # Few steps, but enough of them, with logit adjustment, to pass the gate against the frozen model.
    "tune": {"epochs": 3, "context_tokens": 4, "base_loss": "logit_adjusted"},
    "evaluate": {"gallery_images": 4},
}


COMMIT = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "-am")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The environment of the commands: this interpreter's scripts first, no MLflow server, no tracking home."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def clone(
    copy_project: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Path:
    """What git would hand a new user (tracked and new files), with a smaller setting, committed."""
    folder = tmp_path_factory.mktemp("clone")
    copy_project(folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in SETTINGS.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for command in (
        ["git", "init", "--quiet"],
        ["git", "add", "--all"],
        [*COMMIT, "clone"],
    ):
        subprocess.run(command, cwd=folder, check=True, env=environment)
    return folder


@pytest.fixture
def run(clone: Path, environment: dict[str, str]) -> Run:
    """Run a command in the clone; its output on success, an assertion that shows it otherwise."""

    def call(*command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    return call


def stages_run(output: str) -> Sequence[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]


def champion(clone: Path) -> tuple[str, str]:
    with sqlite3.connect(clone / "mlflow.db") as store:
        (row,) = store.execute("select name, version from registered_model_aliases where alias = 'champion'")
    return str(row[0]), str(row[1])


def versions(clone: Path) -> list[str]:
    with sqlite3.connect(clone / "mlflow.db") as store:
        return [str(version) for (version,) in store.execute("select version from model_versions order by version")]


def test_a_fresh_clone_ends_with_a_champion_without_an_activated_environment(
    clone: Path, environment: dict[str, str]
) -> None:
    scripts = Path(sys.executable).parent
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/mdpr").symlink_to(scripts / "mdpr")
    path = os.pathsep.join(part for part in environment["PATH"].split(os.pathsep) if Path(part) != scripts)
    assert shutil.which("mdpr", path=path) is None
    done = subprocess.run(
        [scripts / "dvc", "repro"],
        cwd=clone,
        env={**environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # where stages say what they made
        text=True,
        timeout=600,
    )
    output = done.stdout
    assert done.returncode == 0, output
    ran = stages_run(output)
    assert sorted(ran) == sorted(STAGES)
    assert ran.index("validate") < ran.index("probe")
    for made in (
        "prepared",
        "validated",
        "probed",
        "described",
        "encoded",
        "tuned",
        "evaluated",
        "registered",
        "promoted",
    ):
        assert f"\n{made}: " in output
    assert re.search(r"\nprepared: 10 classes, [\d,]+ / 200 / [\d,]+ images, \d+ few-shot\n", output)
    assert champion(clone) == ("mdpr", "1")
    metrics = json.loads((clone / "data/evaluation/metrics.json").read_text())
    assert 0.5 < metrics["fused"]["all"] <= 1
    assert json.loads((clone / "data/promotion.json").read_text())["decision"] == "promoted"


def test_the_run_is_tied_to_git_and_to_dvc(clone: Path) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout.strip()
    lock = yaml.safe_load((clone / "dvc.lock").read_text())
    prepared_md5 = lock["stages"]["prepare"]["outs"][0]["md5"]
    with sqlite3.connect(clone / "mlflow.db") as store:
        values = {value for (value,) in store.execute("select value from tags")}
    assert commit in values
    assert prepared_md5 in values


def test_the_summary_shows_the_table_the_champion_and_the_report(run: Run) -> None:
    output = run("mdpr", "summary")
    for word in ("zero-shot", "base", "routed", "fused", "many", "medium", "few", "report.html", "champion"):
        assert word in output.lower()


def test_a_second_repro_does_nothing(run: Run) -> None:
    output = run("dvc", "repro")
    assert stages_run(output) == []
    assert "up to date" in output


def test_the_lock_is_committed_as_a_user_would(run: Run) -> None:
    run("git", "add", "dvc.lock", "scores")
    run(*COMMIT, "first run")
    assert run("git", "status", "--porcelain") == ""


def test_an_edit_reruns_the_stages_that_run_the_edited_file_and_no_other(clone: Path, run: Run) -> None:
    """A file of every room is edited at once: DVC names the changed dependencies of each stage."""
    rooms = sorted(path for path in (clone / "src/mdpr").iterdir() if path.is_dir())
    texts = {max(room.rglob("*.py"), key=lambda file: file.stat().st_size): "" for room in rooms}
    for file in texts:
        texts[file] = file.read_text()
        file.write_text(texts[file] + "# edited\n")
    status = json.loads(run("dvc", "status", "--json"))
    for file, text in texts.items():
        file.write_text(text)
    changed = {
        stage: {Path(path) for item in items for path in item["changed deps"]} for stage, items in status.items()
    }
    watched = {stage: set(map(Path, stage_dependencies(stage))) for stage in STAGES}
    places = {path: {path, *path.parents} for path in (file.relative_to(clone) for file in texts)}
    edited = {path: {stage for stage, found in changed.items() if found & holds} for path, holds in places.items()}
    assert edited == {path: {stage for stage in STAGES if watched[stage] & holds} for path, holds in places.items()}
    for dependency in set.union(*changed.values()):
        assert sum(dependency in holds for holds in places.values()) == 1, "the edit behind it is not known"
    assert len({frozenset(stages) for stages in edited.values()}) > 4  # the rooms part the stages
    assert run("dvc", "status").strip().endswith("up to date.")


def test_metrics_and_plots_are_there(clone: Path, run: Run) -> None:
    shown = json.loads(run("dvc", "metrics", "show", "--json"))
    figures = next(iter(shown.values()))["data"]
    assert set(figures) >= {"scores/all.json", "scores/many.json"}
    assert list(figures["scores/all.json"]["data"]) == ["fused", "routed", "base", "zero_shot"]
    table = run("dvc", "metrics", "show")
    assert max(map(len, table.splitlines())) <= 80
    page = run("dvc", "plots", "show", "--out", "dvc_plots").strip().splitlines()[-1]
    assert page.endswith("index.html")
    html = (clone / "dvc_plots/index.html").read_text()
    assert "vega" in html
    assert "fused_accuracy" in html


def test_a_stage_killed_at_work_leaves_nothing_and_its_rerun_the_same_weights(
    clone: Path,
    run: Run,
    environment: dict[str, str],
) -> None:
    weights = clone / "data/model/model.safetensors"
    undisturbed = sha256(weights)
    command = ["dvc", "repro", "--force", "--single-item", "--no-run-cache", "tune"]
    process = subprocess.Popen(
        command, cwd=clone, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:  # one epoch is trained: it works, and is not done
        if line.startswith("epoch 1/"):
            break
    else:
        pytest.fail("tune ended before its first epoch was reported")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert not weights.exists()
    run("dvc", "repro", "--no-run-cache", "tune")
    assert sha256(weights) == undisturbed
    assert not list((clone / "data").glob(".*.partial"))


def test_another_number_of_epochs_reruns_tune_and_what_follows(clone: Path, run: Run) -> None:
    output = run("dvc", "exp", "run", "-S", "tune.epochs=2")
    assert stages_run(output) == ["tune", "evaluate", "register", "promote"]
    files = json.loads(run("dvc", "metrics", "diff", "--json"))  # only what changed, in tenths of a percent
    changed = [figure for figures in files.values() for figure in figures.values()]
    assert changed
    assert all(figure["old"] != figure["new"] for figure in changed)
    assert json.loads((clone / "data/promotion.json").read_text())["version"] is None
    assert versions(clone) == ["1"]


def test_experiments_in_copies_keep_their_runs_and_leave_the_registry_until_one_is_applied(
    clone: Path, run: Run, environment: dict[str, str]
) -> None:
    run("git", "add", "dvc.lock", "scores")
    run(*COMMIT, "two epochs")
    assert queue_runs_lost(clone, ["tune.epochs=1 evaluate.ablations=false"], environment) == 0
    temporary = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", "evaluate.ablations=[prior_only]"]
    done = subprocess.run(temporary, cwd=clone, env=environment, check=True, capture_output=True, text=True)
    assert "dvc repro --force --single-item register promote" in done.stderr
    assert "is not in this MLflow store" not in done.stderr
    assert versions(clone) == ["1"]
    run("dvc", "exp", "apply", "queued-0")
    output = run("dvc", "repro", "--force", "--single-item", "register", "promote")
    assert stages_run(output) == ["register", "promote"]
    decided = json.loads((clone / "data/promotion.json").read_text())
    assert (decided["version"], decided["champion_before"]) == ("2", "1")
    assert "up to date" in run("dvc", "repro")


def test_bad_input_is_one_line_and_exit_code_2(clone: Path, run: Run) -> None:
    before = sha256(clone / "data/features")
    output = run(
        *("mdpr", "encode", "--knowledge", "data/knowledge", "--features", "data/features"),
        *("--set", "backbone.weights=data/embedded/mdpr-tiny/nothing.safetensors"),
        code=2,
    )
    assert output.strip().splitlines() == [
        "error: backbone.weights: data/embedded/mdpr-tiny/nothing.safetensors does not exist; "
        "name a file or an open_clip tag"
    ]
    assert sha256(clone / "data/features") == before
