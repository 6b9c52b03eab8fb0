"""The run that `tune` opens, where it comes from, and the results that `evaluate` adds; on a real sqlite store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import git
import pytest
import yaml

from mdpr import __version__
from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError
from mdpr.kubeflow.tasks import close_runs
from mdpr.mlops.publishing import ORIGINAL_RUN_TAG, find_run
from mdpr.mlops.runs import (
    add_results,
    describe_data,
    flatten,
    kubeflow_run,
    lineage_tags,
    open_run,
    run_name,
    settings_before,
)
from mdpr.mlops.store import Store
from mdpr.params import TrackingParams, TuneParams


def test_a_finished_run_holds_what_was_logged(store: Store, tracking: TrackingParams) -> None:
    params = {f"tune.key_{number}": number for number in range(130)}  # more than MLflow takes in one request
    with open_run(tracking, "tune", params, {"origin": "test"}) as run:
        run.log_epoch({"loss": 2.0, "val_fused[all]": 0.5}, epoch=1)
        run.log_epoch({"loss": 1.0, "val_fused[all]": 0.7}, epoch=2)
    seen = store.client.get_run(run.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.info.run_name == "tune"
    assert seen.data.tags["origin"] == "test"
    assert seen.data.tags["mlflow.source.name"] == "mdpr tune"
    assert seen.data.tags["mlflow.user"]
    assert seen.data.params == {key: str(value) for key, value in params.items()}
    history = store.client.get_metric_history(run.run_id, "train/loss")
    assert [(item.step, item.value) for item in history] == [(1, 2.0), (2, 1.0)]
    assert seen.data.metrics["val/fused_all_"] == 70  # percent


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_interrupted_run_says_so(
    store: Store, tracking: TrackingParams, error: type[BaseException], status: str
) -> None:
    context = open_run(tracking, "tune", {}, {})
    run = context.__enter__()
    run.log_epoch({"loss": 1.0}, epoch=1)
    assert not context.__exit__(error, error(), None)
    seen = store.client.get_run(run.run_id)
    assert seen.info.status == status
    assert seen.data.metrics["train/loss"] == 1.0


def test_results_join_the_run_that_trained(store: Store, tracking: TrackingParams, tmp_path: Path) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        pass
    table = tmp_path / "per_class.csv"
    table.write_text("index,class\n0,shoe\n")
    add_results(run.tracked, tracking, {"test/fused/all": 0.8}, {"evaluation/per_class.csv": table})
    assert find_run(store, run.run_id) == run.run_id
    seen = store.client.get_run(run.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.data.metrics == {"test/fused/all": 0.8}
    fetched = store.client.download_artifacts(run.run_id, "evaluation/per_class.csv", str(tmp_path))
    assert Path(fetched).read_text() == table.read_text()


def test_artifacts_lie_beside_the_database(
    store: Store, tracking: TrackingParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with open_run(tracking, "tune", {}, {}) as run:
        pass
    report = elsewhere / "report.html"
    report.write_text("<p>")
    add_results(run.tracked, tracking, {}, {"evaluation/report.html": report})
    assert [path.name for path in elsewhere.iterdir()] == ["report.html"]
    assert len(list((tmp_path / "mlruns").rglob("report.html"))) == 1


def test_a_run_of_another_store_gets_one_mirror(
    store: Store, tracking: TrackingParams, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = TrackedRun(run_id="0123456789abcdef0123456789abcdef", experiment="elsewhere")
    with caplog.at_level("WARNING", logger="mdpr"):
        add_results(foreign, tracking, {"test/fused/all": 0.8}, {})
    first = find_run(store, foreign.run_id)
    assert first is not None
    assert foreign.run_id in caplog.text
    assert first in caplog.text
    assert first != foreign.run_id
    add_results(foreign, tracking, {"test/fused/few": 0.6}, {})
    assert find_run(store, foreign.run_id) == first
    (seen,) = store.client.search_runs([store.client.get_run(first).info.experiment_id])
    assert seen.info.status == "FINISHED"
    assert seen.data.tags[ORIGINAL_RUN_TAG] == foreign.run_id
    assert seen.data.metrics == {"test/fused/all": 0.8, "test/fused/few": 0.6}


def test_results_close_a_run_whose_end_was_lost(store: Store, tracking: TrackingParams) -> None:
    experiment_id = store.client.create_experiment(tracking.experiment)
    left_open = store.client.create_run(experiment_id).info.run_id
    add_results(TrackedRun(run_id=left_open, experiment=tracking.experiment), tracking, {}, {})
    assert store.client.get_run(left_open).info.status == "FINISHED"


def test_a_deleted_experiment_is_named(store: Store, tracking: TrackingParams) -> None:
    store.client.delete_experiment(store.client.create_experiment(tracking.experiment))
    with (
        pytest.raises(TrackingError, match=r"experiment shoes is deleted.*tracking\.experiment"),
        open_run(tracking, "tune", {}, {}),
    ):
        pass


def test_every_few_seconds_mlflow_logs_how_busy_the_machine_is(
    store: Store, tracking: TrackingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with open_run(tracking, "tune", {}, {}) as run:
        for _ in range(200):
            metrics = store.client.get_run(run.run_id).data.metrics
            if "system/cpu_utilization_percentage" in metrics:
                break
            time.sleep(0.1)
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100


def test_a_server_that_cannot_be_reached_is_one_line_and_the_work_goes_on(
    tracking: TrackingParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    worked = False
    with caplog.at_level("WARNING", logger="mdpr"), open_run(tracking, "tune", {}, {}):
        worked = True
    assert worked
    line = next(record.getMessage() for record in caplog.records if record.name.startswith("mdpr"))
    assert line.startswith("MLflow at http://127.0.0.1:9 cannot be reached: start the server, or unset MLFLOW_TRACKING")
    assert "hunter2" not in caplog.text
    assert not any("hunter2" in path.read_text() for path in tmp_path.rglob("item.json"))


def test_a_run_that_failed_closes_its_own_runs_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = store.client.create_experiment("e")

    def start(kfp_run: str) -> str:
        return str(store.client.create_run(experiment, tags={"kfp.run_id": kfp_run}).info.run_id)

    def status(run_id: str) -> str:
        return str(store.client.get_run(run_id).info.status)

    left_open, finished, of_another = start("k1"), start("k1"), start("k2")
    store.client.set_terminated(finished)
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    close_runs("FAILED")
    monkeypatch.setenv("KFP_RUN_ID", "k1")
    close_runs("SUCCEEDED")
    assert status(left_open) == "RUNNING"
    close_runs("FAILED")
    assert [status(run_id) for run_id in (left_open, finished, of_another)] == ["FAILED", "FINISHED", "RUNNING"]


def test_a_run_id_in_the_environment_counts_only_inside_kubeflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "r1")
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    assert kubeflow_run() is None
    monkeypatch.setenv("KFP_RUN_ID", "k1")
    assert kubeflow_run() == "r1"


# --- where a run comes from -----------------------------------------------------------------------------------


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
