"""`mdpr tune` in real processes that are killed, stopped, multiplied and given bad input: embedded data, few steps."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors import safe_open

from mdpr.artifacts import read_images
from mdpr.errors import ArtifactError
from mdpr.params import Params, load_params
from mdpr.stages.stage import load_stage, run_stage

pytestmark = pytest.mark.integration

WAIT_S = 600  # a machine under heavy load; nothing here measures time
SETTINGS = {
    "epochs": 2,
    "context_tokens": 4,
    "prompt_depth": 2,
    "micro_batch_size": 20,
    "sampling": "class_balanced",
    "warmup_epochs": 0.5,
    "checkpoint_every_steps": 1,
}
PORTS = ("prepared", "probe", "features")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, encoded: Mapping[str, Path], small_params: Params) -> Path:
    """A folder with params.yaml and the artifacts that tune reads, where processes work and keep their mlflow.db."""
    folder = tmp_path_factory.mktemp("työ place")
    params = small_params.dump()
    params["tune"] |= SETTINGS
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for port in ("prepared", "probe", "features"):
        shutil.copytree(encoded[port], folder / port)
    return folder


@pytest.fixture
def start(workplace: Path) -> Start:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def call(model: str, *settings: str, launcher: Sequence[str] = (), store: str = "mlflow.db") -> subprocess.Popen:
        options = [part for port in PORTS for part in (f"--{port}", port)] + ["--model", model]
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "mdpr", "tune", *options, *settings],
            cwd=workplace,
            env={**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{store}"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return call


def tune(workplace: Path, model: str, *overrides: str) -> None:
    """The stage in this process."""
    outbox = f"tracking.outbox={workplace / 'outbox'}"
    sections = load_params(workplace / "params.yaml", [outbox, *overrides])
    run_stage(load_stage("tune"), {port: workplace / port for port in PORTS} | {"model": workplace / model}, sections)


def end(process: subprocess.Popen[str], code: int | None = 0) -> str:
    _, log = process.communicate(timeout=WAIT_S)
    assert code is None or process.returncode == code, log
    return log


def position(checkpoint: Path) -> int:
    """Steps that a checkpoint holds, an epoch counted as 1000; -1 where there is none."""
    path = checkpoint / "state.safetensors"
    if not path.exists():
        return -1
    with safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()["state"])["record"]
    return int(record["epoch"]) * 1000 + int(record["step"])


def signal_at(process: subprocess.Popen[str], checkpoint: Path, place: int, number: signal.Signals) -> None:
    """Send a signal once the checkpoint is at `place` or beyond it."""
    until = time.monotonic() + WAIT_S
    while position(checkpoint) < place:
        assert process.poll() is None, f"ended too early: {process.communicate()[1]}"
        assert time.monotonic() < until, "no such step"
        time.sleep(0.002)
    os.killpg(process.pid, number)  # as a node that goes does it: the loader's workers hear it too


def test_killed_and_stopped_at_several_steps_the_result_is_that_of_an_undisturbed_run(
    workplace: Path, start: Start
) -> None:
    undisturbed = start("whole", "--set", "tracking.experiment=whole", store="whole.db")  # beside what follows
    checkpoint = workplace / ".broken.checkpoint"
    chance = random.Random(0)  # noqa: S311 - where to kill is no secret
    for place in (chance.randrange(1, 4), 1000 + chance.randrange(2, 5)):
        process = start("broken")
        signal_at(process, checkpoint, place, signal.SIGKILL)
        end(process, -signal.SIGKILL)
        assert not (workplace / "broken").exists()

    kept = (checkpoint / "state.safetensors").read_bytes()
    with pytest.raises(ArtifactError) as caught:
        tune(workplace, "broken", "tune.learning_rate=0.01")
    assert str(caught.value) == (
        f"{checkpoint} was left by another configuration: tune.learning_rate is 0.01 here, 0.001 there; "
        f"set it back, or remove {checkpoint} to start over"
    )
    assert (checkpoint / "state.safetensors").read_bytes() == kept

    stopped = start("broken", "--workers", "1")
    signal_at(stopped, checkpoint, position(checkpoint) + 1, signal.SIGTERM)
    log = end(stopped, 143)
    assert "resuming after step" in log
    assert "the same command goes on from there" in log
    assert "Traceback" not in log
    assert not (workplace / "broken").exists()

    end(start("broken"))
    end(undisturbed)
    for name in ("model.safetensors", "history.csv", "config.json"):
        assert (workplace / "broken" / name).read_bytes() == (workplace / "whole" / name).read_bytes(), name
    assert not checkpoint.exists()
    assert not list(workplace.glob(".*.partial"))
    with sqlite3.connect(workplace / "mlflow.db") as store:
        runs = dict(store.execute("select run_uuid, status from runs"))
        logged = store.execute(
            "select run_uuid, count(*) from metrics where key = 'train/loss' group by run_uuid"
        ).fetchall()
    assert list(runs.values()) == ["FINISHED"], "the run that was killed is the one that ended"
    assert dict(logged) == dict.fromkeys(runs, SETTINGS["epochs"])


def test_two_processes_stopped_and_resumed_draw_the_curve_of_one(
    workplace: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uneven shards: the last step has one image, so one of the two has none. Dropout differs by process: off."""
    images = len(read_images(workplace / "prepared" / "train.parquet"))
    batch = next(size for size in range(31, images) if images % size == 1)
    changes = {"batch_size": batch, "router_dropout": 0.0, "base_loss": "class_balanced"}
    settings = [part for key, value in changes.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace / 'alone.db'}")
    tune(workplace, "alone", *(f"tune.{key}={value}" for key, value in changes.items()))

    pair = start("pair", *settings, launcher=TORCHRUN)
    signal_at(pair, workplace / ".pair.checkpoint", 2, signal.SIGTERM)
    log = end(pair, None)
    assert pair.returncode != 0
    assert "the same command goes on from there" in log, log
    assert not (workplace / "pair").exists()
    log = end(start("pair", *settings, launcher=TORCHRUN))
    assert log.count("epoch 2/2: loss") == 1, "one process speaks for both"

    one, two = (pd.read_csv(workplace / name / "history.csv") for name in ("alone", "pair"))
    assert list(one.columns) == list(two.columns)
    losses = [name for name in one if name.startswith(("loss", "learning"))]
    pd.testing.assert_frame_equal(one[losses], two[losses], rtol=1e-4, atol=1e-6)
    accuracies = [name for name in one if name.startswith("val")]
    pd.testing.assert_frame_equal(one[accuracies], two[accuracies], rtol=0, atol=0.011)
    assert not (workplace / ".pair.checkpoint").exists()
