"""The outbox while MLflow cannot be reached: nothing is lost, nothing is there twice, one bad item stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from benchmarks.outbox_faults import BAD_ITEMS, isolate, put, rewrite

from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError
from mdpr.mlops.publishing import (
    ORIGINAL_RUN_TAG,
    Item,
    boxes,
    find_run,
    mirror_run,
    now_ms,
    open_box,
    publish,
    publish_outbox,
)
from mdpr.mlops.runs import add_results, open_run, split_inputs
from mdpr.mlops.store import Store, connect
from mdpr.params import TrackingParams

DOWN = "http://127.0.0.1:9"
FOREIGN = TrackedRun(run_id="0123456789abcdef0123456789abcdef", experiment="shoes")


@pytest.fixture
def outbox(tmp_path: Path, tracking: TrackingParams) -> Path:
    return tmp_path / tracking.outbox


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


@pytest.fixture
def finished(store: Store, tracking: TrackingParams) -> TrackedRun:
    """A run that the store holds."""
    with open_run(tracking, "tune", {"tune.epochs": 2}, {"a": "b"}) as run:
        run.log_epoch({"loss": 2.0}, 0)
    return run.tracked


def losses(store: Store, run_id: str) -> list[tuple[int, float]]:
    return [(item.step, item.value) for item in store.client.get_metric_history(run_id, "train/loss")]


def results_of(store: Store, run: TrackedRun, **rest: object) -> Item:
    return Item.model_validate({"store": store.address, "run": run, **rest})


# --- on the disk --------------------------------------------------------------------------------------------


def test_an_item_is_read_back_as_it_was_written(outbox: Path, store: Store) -> None:
    item = results_of(store, FOREIGN, tags={"name": "ä\n"}, metrics=[("x", float("inf"), 5, 0)], status="FAILED")
    put(outbox, item)
    (box,) = boxes(outbox)
    assert box.read() == item


def test_an_item_has_one_owner(outbox: Path, store: Store) -> None:
    item = results_of(store, FOREIGN)
    with open_box(outbox, item, "history") as box:
        assert list(boxes(outbox)) == []
        with pytest.raises(TrackingError, match="being written by another process"), open_box(outbox, item, "history"):
            pass
        box.remove()
    with open_box(outbox, results_of(store, FOREIGN, tags={"second": "1"}), "history") as box:
        assert box.read().tags == {"second": "1"}  # a new folder, not the one that was removed


def test_a_process_that_dies_while_it_writes_leaves_the_last_whole_item(outbox: Path, store: Store) -> None:
    folder = put(outbox, results_of(store, FOREIGN, tags={"n": "1"}))
    (folder / "item.json.partial").write_text('{"format": "mdpr-outb')
    assert next(boxes(outbox)).read().tags == {"n": "1"}
    (outbox / ".new.partial").mkdir()  # an item that never was whole is none
    assert [box.folder for box in boxes(outbox)] == [folder]


def test_an_outbox_that_cannot_be_used_is_named_before_the_work(
    store: Store, tracking: TrackingParams, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.write_text("a file")
    with (
        pytest.raises(TrackingError, match=r"tracking\.outbox: .* name another folder"),
        open_run(tracking, "t", {}, {}),
    ):
        pytest.fail("the work has begun")
    with caplog.at_level("WARNING", logger="mdpr"):
        add_results(FOREIGN, tracking, {"a": 1.0}, {})  # after the work, a warning is enough
    assert "tracking.outbox" in caplog.text
    assert outbox.read_text() == "a file"


# --- down and up again --------------------------------------------------------------------------------------


def test_results_wait_while_the_store_is_down(
    store: Store,
    quick: None,
    finished: TrackedRun,
    tracking: TrackingParams,
    outbox: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = os.environ["MLFLOW_TRACKING_URI"]
    table = tmp_path / "per_class.csv"
    table.write_text("index\n0\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DOWN)
    add_results(finished, tracking, {"test/fused/all": 0.8}, {"evaluation/per_class.csv": table, "a/b.csv": table})
    table.unlink()  # a stage's output moves when the stage ends
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    assert publish_outbox(connect(), outbox) == 0  # it waits for the other store
    (item,) = outbox.glob("*/item.json")
    item.write_text(item.read_text().replace(DOWN, store.address))  # which has come back under this address
    assert publish_outbox(connect(), outbox) == 1
    assert publish_outbox(connect(), outbox) == 0
    assert not outbox.exists()
    assert store.client.get_metric_history(finished.run_id, "test/fused/all")[0].value == 0.8
    for name in ("evaluation/per_class.csv", "a/b.csv"):
        assert Path(store.client.download_artifacts(finished.run_id, name)).read_text() == "index\n0\n"


def test_a_run_made_while_the_store_is_down_is_made_there_later(
    store: Store, quick: None, tracking: TrackingParams, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DOWN)
    with open_run(tracking, "tune", {"tune.epochs": 2}, {"a": "b"}) as run:
        for epoch in range(2):
            run.log_epoch({"loss": 2.0 - epoch}, epoch)
    add_results(run.tracked, tracking, {"test/fused/all": 0.8}, {})
    assert len(list(outbox.iterdir())) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    for item in outbox.glob("*/item.json"):
        item.write_text(item.read_text().replace(DOWN, store.address))
    with open_run(tracking, "next", {}, {}):  # the next stage
        assert [path.suffix for path in outbox.iterdir()] == [".history"]  # its own
    made = find_run(store, run.run_id)
    assert made not in (None, run.run_id)
    seen = store.client.get_run(str(made))
    assert (seen.info.run_name, seen.info.status) == ("tune", "FINISHED")
    assert seen.data.params == {"tune.epochs": "2"}
    assert seen.data.tags["a"] == "b"
    assert seen.data.metrics["test/fused/all"] == 0.8
    assert losses(store, seen.info.run_id) == [(0, 2.0), (1, 1.0)]


def test_publishing_twice_keeps_everything_once(
    store: Store, finished: TrackedRun, outbox: Path, tmp_path: Path
) -> None:
    """As after a kill -9 between the store's answer and the removal of the item."""
    report = tmp_path / "report.html"
    report.write_text("<p>")
    item = results_of(store, finished, params={"p": "1"}, metrics=[("x", 1.0, 5, 0), ("x", 2.0, 6, 1)])
    for _ in range(2):
        put(outbox, item, "results", {"evaluation/report.html": report})
        assert publish_outbox(store, outbox) == 1
    assert [(m.step, m.value) for m in store.client.get_metric_history(finished.run_id, "x")] == [(0, 1.0), (1, 2.0)]
    assert store.client.get_run(finished.run_id).data.params == {"tune.epochs": "2", "p": "1"}


KILLED = """
import os, signal, sys
from mdpr.params import TrackingParams
from mdpr.mlops.runs import open_run

with open_run(TrackingParams(experiment="shoes", system_metrics=False), "tune", {}, {}) as run:
    print(run.run_id, flush=True)
    for epoch in range(3):
        if epoch == 1:  # from here on the store is down
            run._retry_at_s = float("inf")
        run.log_epoch({"loss": float(epoch)}, epoch)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(store: Store, tmp_path: Path) -> str:
    """A run whose process was killed with two epochs that only the outbox has."""
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def test_kill_9_loses_nothing_and_the_next_run_publishes_it(
    store: Store, tracking: TrackingParams, outbox: Path, killed: str
) -> None:
    assert losses(store, killed) == [(0, 0.0)]
    with open_run(tracking, "tune", {}, {}):
        pass
    assert losses(store, killed) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert store.client.get_run(killed).info.status == "KILLED"
    assert not outbox.exists()


@pytest.mark.parametrize("published_before", [False, True])
def test_a_resumed_run_goes_on_where_it_was(
    store: Store, tracking: TrackingParams, outbox: Path, killed: str, published_before: bool
) -> None:
    if published_before:
        publish_outbox(store, outbox)
        assert store.client.get_run(killed).info.status == "KILLED"
    with open_run(tracking, "tune", {}, {}, run_id=killed) as run:
        assert run.run_id == killed
        assert store.client.get_run(killed).info.status == "RUNNING"
        for epoch in (1, 2, 3):  # from the last checkpoint on: two of them are known already
            run.log_epoch({"loss": float(epoch)}, epoch)
    assert losses(store, killed) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert store.client.get_run(killed).info.status == "FINISHED"


def test_a_resumed_run_keeps_the_parameters_it_began_with(store: Store, tracking: TrackingParams) -> None:
    with open_run(tracking, "tune", {"tune.workers": 0}, {}) as begun:
        pass
    with open_run(tracking, "tune", {"tune.workers": 1, "tune.device": "cpu"}, {}, run_id=begun.run_id) as run:
        assert run.run_id == begun.run_id
    run_in_store = store.client.get_run(begun.run_id)
    assert run_in_store.data.params == {"tune.workers": "0", "tune.device": "cpu"}
    assert run_in_store.info.status == "FINISHED"


def test_a_live_run_is_left_alone(store: Store, tracking: TrackingParams, outbox: Path) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        run._retry_at_s = float("inf")
        run.log_epoch({"loss": 1.0}, 0)
        assert publish_outbox(store, outbox) == 0
        assert store.client.get_run(run.run_id).info.status == "RUNNING"
        run._retry_at_s = 0.0
        run.log_epoch({"loss": 0.5}, 1)
    assert losses(store, run.run_id) == [(0, 1.0), (1, 0.5)]


# --- mirrors ------------------------------------------------------------------------------------------------


def test_a_run_that_was_deleted_meanwhile_gets_a_mirror(store: Store, finished: TrackedRun, outbox: Path) -> None:
    put(outbox, results_of(store, finished, metrics=[("train/loss", 1.0, 5, 0)], status="RUNNING"))
    store.client.delete_run(finished.run_id)
    assert publish_outbox(store, outbox) == 1
    experiment_id = store.client.get_experiment_by_name("shoes").experiment_id
    (mirror,) = store.client.search_runs([experiment_id])
    assert mirror.data.metrics == {"train/loss": 1.0}
    assert mirror.info.status == "KILLED"


def test_a_mirror_whose_process_was_killed_ends_as_the_original_did(store: Store, outbox: Path) -> None:
    left_open = mirror_run(store, FOREIGN)  # and here its process ends
    put(outbox, results_of(store, FOREIGN, metrics=[("test/fused/all", 1.0, 5, 0)]), "results")
    assert publish_outbox(store, outbox) == 1
    assert store.client.get_run(left_open.run_id).info.status == "FINISHED"


def test_of_mirrors_made_at_once_one_remains(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: mirror_run(store, FOREIGN).run_id, range(4)))
    experiment_id = store.client.get_experiment_by_name("shoes").experiment_id
    (mirror,) = store.client.search_runs([experiment_id])
    assert mirror.data.tags[ORIGINAL_RUN_TAG] == FOREIGN.run_id
    assert mirror_run(store, FOREIGN).run_id == mirror.info.run_id
    assert mirror.info.run_id in found


# --- one bad item stops no other ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_a_bad_item_is_set_aside_and_the_others_are_published(
    name: str, store: Store, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="mdpr"):
        assert isolate(name, store, outbox) == ""
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("mdpr")]
    assert "\n" not in line
    assert f"{outbox}/" in line


def test_an_item_that_is_too_large_is_not_read(
    store: Store, finished: TrackedRun, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = put(outbox, results_of(store, finished))
    monkeypatch.setattr("mdpr.mlops.publishing.MAX_ITEM_BYTES", 10)
    assert publish_outbox(store, outbox) == 0
    assert (outbox / f"{bad.name}.refused").is_dir()


def test_what_is_no_item_is_passed_over(
    store: Store, finished: TrackedRun, outbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(outbox, results_of(store, finished, metrics=[("good", 1.0, 5, 0)]))
    os.mkfifo(outbox / "x.json")
    (outbox / "deadbeef.json").write_text("garbage")
    (outbox / "link").symlink_to(tmp_path)
    with caplog.at_level("WARNING", logger="mdpr"):
        assert publish_outbox(store, outbox) == 1
    for name in ("x.json", "deadbeef.json", "link"):
        assert f"{name} is not an item" in caplog.text
    assert {path.name for path in outbox.iterdir()} == {"x.json", "deadbeef.json", "link"}


def test_a_stage_goes_on_beside_a_bad_item_of_another_run(store: Store, tracking: TrackingParams, outbox: Path) -> None:
    rewrite(b"garbage")(put(outbox, results_of(store, FOREIGN)))
    with open_run(tracking, "tune", {}, {}) as run:
        run.log_epoch({"loss": 1.0}, 0)
    add_results(run.tracked, tracking, {"test/fused/all": 0.8}, {})
    assert store.client.get_run(run.run_id).data.metrics == {"train/loss": 1.0, "test/fused/all": 0.8}


def test_a_damaged_item_of_the_resumed_run_is_kept_aside(
    store: Store, tracking: TrackingParams, outbox: Path, killed: str
) -> None:
    rewrite(b"garbage")(outbox / f"{killed}.history")
    with open_run(tracking, "tune", {}, {}, run_id=killed) as run:
        run.log_epoch({"loss": 5.0}, 5)
    assert losses(store, killed) == [(0, 0.0), (5, 5.0)]
    assert (outbox / f"{killed}.history.refused" / "item.json").read_bytes() == b"garbage"


def test_nan_is_a_value(store: Store, finished: TrackedRun) -> None:
    publish(store, results_of(store, finished, metrics=[("x", float("nan"), now_ms(), 0)]))
    (value,) = store.client.get_metric_history(finished.run_id, "x")
    assert value.value != value.value


# --- what a run records -------------------------------------------------------------------------------------


def test_what_was_trained_on_is_an_input_of_the_run(
    store: Store, tracking: TrackingParams, encoded: Mapping[str, Path]
) -> None:
    card = json.loads((encoded["prepared"] / "card.json").read_text())
    with open_run(tracking, "tune", {}, {}, datasets=split_inputs(encoded["prepared"], ["train", "val"])) as run:
        pass
    add_results(run.tracked, tracking, {}, {}, datasets=split_inputs(encoded["prepared"], ["test"]))
    inputs = store.client.get_run(run.run_id).inputs.dataset_inputs
    seen = {item.tags[0].value: json.loads(item.dataset.profile)["sha256"] for item in inputs}
    assert seen == {
        context: card["sha256"][f"{split}.parquet"]
        for split, context in {"train": "training", "val": "validation", "test": "testing"}.items()
    }
