"""The log of a process: bounded, whole files, and never a fault of the request that it records."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mdpr.artifacts.prediction_log import LogSource, open_prediction_log
from mdpr.errors import DataError
from mdpr.model.classifier import Outputs
from mdpr.monitoring.recording import AnswerRecorder, LogSettings, check_folder, log_source, take_answers

NAMES = tuple(f"c{index}" for index in range(150))
SOURCE = LogSource(model="shoes", version="3", model_digest="d", class_names=NAMES)
FOREVER_S = 1e6


def outputs(images: int) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(images, len(NAMES), generator=generator)
    image_Bd = torch.nn.functional.normalize(torch.randn(images, 8, generator=generator), dim=-1)
    return Outputs(image_Bd, logits_BC, logits_BC.log_softmax(dim=-1))


def rows(folder: Path) -> int:
    return sum(file.rows for file in open_prediction_log(folder).files)


def wait_for(written: int, log: AnswerRecorder) -> None:
    deadline_s = time.monotonic() + 30
    while log.written < written and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert log.written >= written


def test_the_best_hundred_classes_are_taken_in_order() -> None:
    made = outputs(5)
    taken = take_answers(made, embeddings=True)
    assert taken.class_NK.shape == (5, 100)
    np.testing.assert_array_equal(taken.top1_N, made.fused_BC.argmax(dim=1).numpy())
    assert (np.diff(taken.log_probability_NK, axis=1) <= 0).all()
    np.testing.assert_allclose(taken.embedding_Nd, made.image_Bd.numpy())


def test_files_are_written_by_rows_by_time_and_at_the_end(tmp_path: Path) -> None:
    log = AnswerRecorder(LogSettings(tmp_path / "rows", rows=10, seconds=FOREVER_S), SOURCE)
    for _ in range(4):
        log.record(outputs(3), torch.zeros(3, dtype=torch.long))
    wait_for(12, log)
    log.record(outputs(3), torch.zeros(3, dtype=torch.long))
    log.close()
    assert (log.written, log.dropped, rows(tmp_path / "rows")) == (15, 0, 15)
    log.record(outputs(3), torch.zeros(3, dtype=torch.long))  # too late
    assert log.dropped == 3

    timed = AnswerRecorder(LogSettings(tmp_path / "time", rows=10_000, seconds=0.05), SOURCE)
    timed.record(outputs(2), torch.zeros(2, dtype=torch.long))
    wait_for(2, timed)
    timed.close()
    assert rows(tmp_path / "time") == 2


def test_a_full_disk_limit_is_counted_and_nothing_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "own.bin").write_bytes(bytes(2 * 2**20))
    log = AnswerRecorder(LogSettings(tmp_path, rows=1, seconds=FOREVER_S, max_mb=1), SOURCE)
    with caplog.at_level(logging.WARNING):
        log.record(outputs(4), torch.zeros(4, dtype=torch.long))
        log.close()
    assert (log.written, log.dropped) == (0, 4)
    assert "limit" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["own.bin"]


def test_a_folder_that_vanishes_or_a_broken_batch_never_fails_the_caller(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    check_folder(folder)
    log = AnswerRecorder(LogSettings(folder, rows=1, seconds=FOREVER_S), SOURCE)
    folder.rmdir()
    folder.touch()  # now a file
    log.record(outputs(2), torch.zeros(2, dtype=torch.long))
    log.record(None, torch.zeros(5, dtype=torch.long))  # type: ignore[arg-type]
    log.close()
    assert (log.written, log.dropped) == (0, 7)


def test_answers_beyond_the_backlog_are_dropped_not_kept(tmp_path: Path) -> None:
    log = AnswerRecorder(LogSettings(tmp_path, rows=10, seconds=FOREVER_S), SOURCE)
    with log._changed:  # the writer cannot take what waits
        log._rows = 40
    log.record(outputs(3), torch.zeros(3, dtype=torch.long))
    assert log.dropped == 3
    with log._changed:
        log._rows = 0
    log.close()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="--log"):
        check_folder(tmp_path / "file" / "log")


WORKER = """
import sys
sys.path.insert(0, {here!r})
from test_recording import *
log = AnswerRecorder(LogSettings(Path(sys.argv[1]), rows=50, seconds=1000), SOURCE)
for _ in range(20):
    log.record(outputs(5), torch.zeros(5, dtype=torch.long))
log.close()
"""


def test_processes_write_files_of_their_own(tmp_path: Path) -> None:
    program = WORKER.format(here=str(Path(__file__).parent))
    workers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    log = open_prediction_log(tmp_path)
    assert log.faults == []
    assert rows(tmp_path) == 200


@pytest.mark.parametrize(
    ("address", "model", "version"),
    [
        ("models:/shoes/3", "shoes", "3"),
        ("models:/shoes@champion", "shoes", "champion"),
        ("shoes", "shoes", ""),
        ("data/model", "data/model", ""),
    ],
)
def test_a_log_names_its_model(address: str, model: str, version: str) -> None:
    classifier = SimpleNamespace(prior=None, digest="d", class_names=("boot", "bag"))
    source = log_source(classifier, address)  # type: ignore[arg-type]
    assert (source.model, source.version) == (model, version)
