import time
from pathlib import Path

import pytest

from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError
from mdpr.mlops.delivery import ORIGINAL_RUN_TAG
from mdpr.mlops.runs import add_results, open_run
from mdpr.mlops.store import Store, connect, explain
from mdpr.params import TrackingParams


def test_a_finished_run_holds_what_was_logged(store: Store, tracking: TrackingParams) -> None:
    params = {f"tune.key_{number}": number for number in range(130)}  # more than MLflow takes in one request
    with open_run(tracking, "tune", params, {"origin": "test"}) as run:
        run.log_epoch({"loss": 2.0, "val/fused[all]": 0.5}, epoch=1)
        run.log_epoch({"loss": 1.0, "val/fused[all]": 0.7}, epoch=2)
    seen = store.client.get_run(run.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.info.run_name == "tune"
    assert seen.data.tags["origin"] == "test"
    assert seen.data.params == {key: str(value) for key, value in params.items()}
    history = store.client.get_metric_history(run.run_id, "loss")
    assert [(item.step, item.value) for item in history] == [(1, 2.0), (2, 1.0)]
    assert seen.data.metrics["val/fused_all_"] == 0.7


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
    assert seen.data.metrics["loss"] == 1.0


def test_results_join_the_run_that_trained(store: Store, tracking: TrackingParams, tmp_path: Path) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        pass
    table = tmp_path / "per_class.csv"
    table.write_text("index,class\n0,shoe\n")
    here = add_results(run.tracked, tracking, {"test.fused.all": 0.8}, [table])
    assert here == run.tracked
    seen = store.client.get_run(run.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.data.metrics == {"test.fused.all": 0.8}
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
    add_results(run.tracked, tracking, {}, [report])
    assert [path.name for path in elsewhere.iterdir()] == ["report.html"]
    assert len(list((tmp_path / "mlruns").rglob("report.html"))) == 1


def test_a_run_of_another_store_gets_one_stand_in(
    store: Store, tracking: TrackingParams, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = TrackedRun(run_id="0123456789abcdef0123456789abcdef", experiment="elsewhere")
    with caplog.at_level("WARNING", logger="mdpr"):
        first = add_results(foreign, tracking, {"test.fused.all": 0.8}, [])
    assert foreign.run_id in caplog.text
    assert first.run_id in caplog.text
    assert first.run_id != foreign.run_id
    assert add_results(foreign, tracking, {"test.fused.few": 0.6}, []) == first
    seen = store.client.get_run(first.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.data.tags[ORIGINAL_RUN_TAG] == foreign.run_id
    assert seen.data.metrics == {"test.fused.all": 0.8, "test.fused.few": 0.6}


def test_results_close_a_run_whose_end_was_lost(store: Store, tracking: TrackingParams) -> None:
    experiment_id = store.client.create_experiment(tracking.experiment)
    left_open = store.client.create_run(experiment_id).info.run_id
    add_results(TrackedRun(run_id=left_open, experiment=tracking.experiment), tracking, {}, [])
    assert store.client.get_run(left_open).info.status == "FINISHED"


def test_a_deleted_experiment_is_named(store: Store, tracking: TrackingParams) -> None:
    store.client.delete_experiment(store.client.create_experiment(tracking.experiment))
    with (
        pytest.raises(TrackingError, match=r"experiment shoes is deleted.*tracking\.experiment"),
        open_run(tracking, "tune", {}, {}),
    ):
        pass


def test_a_server_that_is_away_fails_before_the_work(tracking: TrackingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    worked = False
    with pytest.raises(TrackingError) as caught, open_run(tracking, "tune", {}, {}):
        worked = True
    assert not worked
    assert str(caught.value) == (
        "MLflow at http://127.0.0.1:9 cannot be reached: "
        "start the server, or unset MLFLOW_TRACKING_URI to use sqlite:///mlflow.db"
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "API request to endpoint /x failed with error code 401 != 200.",
            "refused (401): set MLFLOW_TRACKING_USER",
        ),
        ("API request to endpoint /x failed with error code 404 != 200.", "answered with status 404: start"),
        (
            "API request to http://h failed with exception Max retries ... too many 500 error responses",
            "status 500",
        ),
        ("API request to http://h failed with timeout exception hunter2", "cannot be reached: start"),
        ("Invalid name\nhunter2 again", "MLflow at http://h:5: Invalid name *** again"),
        ("", "failed without a message"),
    ],
)
def test_refusals_are_one_line_without_the_password(message: str, expected: str) -> None:
    line = explain("http://someone:hunter2@h:5", message)
    assert expected in line
    assert "hunter2" not in line
    assert "\n" not in line


def test_a_damaged_store_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    started_s = time.monotonic()
    with pytest.raises(TrackingError, match=r"mlflow\.db is not an MLflow store"):
        connect()
    assert time.monotonic() - started_s < 5
