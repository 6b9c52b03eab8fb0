"""What waits on the disk while MLflow is away: nothing is lost, nothing is there twice, whoever dies when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError
from mdpr.mlops.delivery import flush
from mdpr.mlops.registry import CHAMPION, Registry
from mdpr.mlops.runs import add_results, open_run, split_inputs
from mdpr.mlops.spool import open_journal
from mdpr.mlops.store import Store, connect
from mdpr.params import TrackingParams

AWAY = "http://127.0.0.1:9"


@pytest.fixture
def spool(tmp_path: Path, tracking: TrackingParams) -> Path:
    return tmp_path / tracking.outbox


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


def losses(store: Store, run_id: str) -> list[tuple[int, float]]:
    return [(item.step, item.value) for item in store.client.get_metric_history(run_id, "loss")]


# --- the journal --------------------------------------------------------------------------------------------


def test_a_journal_is_read_back_as_it_was_written(spool: Path) -> None:
    journal = open_journal(spool, "run")
    assert journal is not None
    for number in range(3):
        journal.append("tags", {"name": f"ä\n{number}"})
    journal.acknowledge(2)
    journal.close()
    again = open_journal(spool, "run")
    assert again is not None
    assert again.entries == journal.entries
    assert [entry.content for entry in again.pending] == [{"name": "ä\n2"}]
    assert again.append("tags", {}).number == 4


@pytest.mark.parametrize("torn", [b'[4, "tags", {"a', b"[", b'[4, "tags", {}]'])
def test_a_torn_last_line_is_cut_off(spool: Path, torn: bytes) -> None:
    journal = open_journal(spool, "run")
    assert journal is not None
    entries = [journal.append("tags", {"n": str(number)}) for number in range(3)]
    journal.close()
    with journal.path.open("ab") as file:
        file.write(torn)  # the process was killed before the line's end
    again = open_journal(spool, "run")
    assert again is not None
    assert again.entries == entries
    again.append("tags", {"n": "3"})
    again.close()
    lines = journal.path.read_text().splitlines()
    assert [json.loads(line)[0] for line in lines] == [1, 2, 3, 4]


def test_a_journal_has_one_owner(spool: Path) -> None:
    first = open_journal(spool, "run")
    assert first is not None
    assert open_journal(spool, "run") is None
    first.append("tags", {})
    first.remove()
    first.close()
    second = open_journal(spool, "run")  # a new file, not the one that was removed
    assert second is not None
    assert second.entries == []
    assert second.path.exists()


def test_a_damaged_line_is_named(spool: Path) -> None:
    spool.mkdir()
    (spool / "run.jsonl").write_text('[1, "tags", {}]\nrubbish\n[2, "tags", {}]\n')
    with pytest.raises(TrackingError, match=r"run\.jsonl line 2 is damaged"):
        open_journal(spool, "run")


# --- away and back ------------------------------------------------------------------------------------------


def test_results_wait_while_the_store_is_away(
    store: Store, quick: None, tracking: TrackingParams, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        run.log_epoch({"loss": 1.0}, 0)
    here = os.environ["MLFLOW_TRACKING_URI"]
    table = tmp_path / "per_class.csv"
    table.write_text("index\n0\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    tracked = add_results(run.tracked, tracking, {"test.fused.all": 0.8}, [table], attachments={"a/b.csv": table})
    assert tracked.run_id == run.run_id
    table.unlink()  # a stage's output moves when the stage ends
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    assert flush(connect(), spool) == 0  # it waits for the other store
    journal = next(spool.glob("*.jsonl"))
    journal.write_text(journal.read_text().replace(AWAY, store.address))  # which has come back under this address
    assert flush(connect(), spool) == 3
    assert flush(connect(), spool) == 0
    assert not spool.exists()
    assert store.client.get_metric_history(run.run_id, "test.fused.all")[0].value == 0.8
    for name in ("evaluation/per_class.csv", "a/b.csv"):
        assert Path(store.client.download_artifacts(run.run_id, name)).read_text() == "index\n0\n"


def test_delivering_twice_keeps_everything_once(store: Store, tracking: TrackingParams, spool: Path) -> None:
    """As after a kill -9 between the answer of the store and the line that notes it."""
    with open_run(tracking, "tune", {"tune.epochs": 2}, {"a": "b"}) as run:
        run.log_epoch({"loss": 2.0}, 0)
        kept = run.journal.path.read_text()
        run.log_epoch({"loss": 1.0}, 1)
    spool.mkdir()
    unnoted = [line for line in kept.splitlines(keepends=True) if '"acknowledged"' not in line]
    (spool / f"{run.run_id}.jsonl").write_text("".join(unnoted))
    assert flush(store, spool) > 0
    assert losses(store, run.run_id) == [(0, 2.0), (1, 1.0)]
    assert store.client.get_run(run.run_id).data.params == {"tune.epochs": "2"}


KILLED = """
import os, signal, sys
from mdpr.params import TrackingParams
from mdpr.mlops.runs import open_run

with open_run(TrackingParams(experiment="shoes", system_metrics=False), "tune", {}, {}) as run:
    print(run.run_id, flush=True)
    for epoch in range(3):
        if epoch == 1:  # from here on the store is away
            run._retry_at_s = float("inf")
        run.log_epoch({"loss": float(epoch)}, epoch)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_loses_nothing_and_the_next_run_delivers_it(
    store: Store, tracking: TrackingParams, spool: Path, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    killed = done.stdout.strip()
    assert losses(store, killed) == [(0, 0.0)]
    with open_run(tracking, "tune", {}, {}):
        pass
    assert losses(store, killed) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert store.client.get_run(killed).info.status == "KILLED"
    assert not spool.exists()


def test_a_resumed_run_goes_on_where_it_was(store: Store, tracking: TrackingParams, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    killed = done.stdout.strip()
    with open_run(tracking, "tune", {}, {}, run_id=killed) as run:
        assert run.run_id == killed
        assert store.client.get_run(killed).info.status == "RUNNING"
        for epoch in (1, 2, 3):  # from the last checkpoint on: two of them are known already
            run.log_epoch({"loss": float(epoch)}, epoch)
    assert losses(store, killed) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert store.client.get_run(killed).info.status == "FINISHED"


def test_a_run_that_was_deleted_meanwhile_is_stood_in_for(store: Store, tracking: TrackingParams, spool: Path) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        text = run.journal.path.read_text()
    spool.mkdir()
    (spool / f"{run.run_id}.jsonl").write_text(text + '[9, "metrics", [["loss", 1.0, 5, 0]]]\n')
    store.client.delete_run(run.run_id)
    assert flush(store, spool) > 0
    experiment_id = store.client.get_experiment_by_name("shoes").experiment_id
    (stand_in,) = store.client.search_runs([experiment_id])
    assert stand_in.data.metrics == {"loss": 1.0}
    assert stand_in.info.status == "KILLED"


def test_what_is_refused_for_good_is_kept(store: Store, tracking: TrackingParams, spool: Path) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        text = run.journal.path.read_text()
    spool.mkdir()
    (spool / f"{run.run_id}.jsonl").write_text(text + '[9, "metrics", [["a[b]", 1.0, 5, 0]]]\n')
    flush(store, spool)
    assert [path.name for path in spool.iterdir()] == [f"{run.run_id}.jsonl.refused"]


def test_what_was_trained_on_is_an_input_of_the_run(
    store: Store, tracking: TrackingParams, encoded: Mapping[str, Path]
) -> None:
    card = json.loads((encoded["prepared"] / "card.json").read_text())
    with open_run(tracking, "tune", {}, {}, datasets=split_inputs(encoded["prepared"], ["train", "val"])) as run:
        pass
    add_results(run.tracked, tracking, {}, [], datasets=split_inputs(encoded["prepared"], ["test"]))
    inputs = store.client.get_run(run.run_id).inputs.dataset_inputs
    seen = {item.tags[0].value: json.loads(item.dataset.profile)["sha256"] for item in inputs}
    assert seen == {
        context: card["sha256"][f"{split}.parquet"]
        for split, context in {"train": "training", "val": "validation", "test": "testing"}.items()
    }


def test_every_epoch_says_how_busy_the_machine_was(store: Store, tracking: TrackingParams) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        run.log_epoch({"loss": 1.0}, 0)
    metrics = store.client.get_run(run.run_id).data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100


# --- a server that does not do what it should ---------------------------------------------------------------


class Troubled(BaseHTTPRequestHandler):
    """Answers 500, or not for a long time."""

    hangs = False
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if self.hangs:
            time.sleep(5)
        self.send_response(500)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.mark.parametrize("hangs", [False, True])
def test_a_troubled_server_is_one_line_after_few_tries(
    hangs: bool, tracking: TrackingParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handler = type("Handler", (Troubled,), {"hangs": hangs})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(TrackingError, match="cannot be reached" if hangs else "answered with status 500") as caught:
        Registry(connect(), "shoes").get_by_alias(CHAMPION)
    assert "\n" not in str(caught.value)
    assert handler.requests == 2  # type: ignore[attr-defined]
    run = TrackedRun(run_id="0" * 32, experiment="shoes")
    assert add_results(run, tracking, {"a": 1.0}, []) == run  # and an evaluation is not lost for it
    assert len(list((tmp_path / tracking.outbox).glob("*.jsonl"))) == 1
    server.shutdown()
    server.server_close()
