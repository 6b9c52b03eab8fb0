"""Recording what a model answers: the log of a server or of `mdpr predict`, and the reference of an evaluation.

`AnswerRecorder` never blocks or fails the request it records. A thread of its own writes a file whenever enough rows
are there or enough time has passed; every process has files of its own. Answers that cannot be written are counted.

Shapes: B images in a batch, C classes, K recorded classes, d joint embedding width.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdpr.artifacts.prediction_log import (
    REFERENCE_FILE,
    TOP_CLASSES,
    Answers,
    LogSource,
    Stamp,
    write_prediction_log,
)
from mdpr.errors import DataError, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from mdpr.model.classifier import Outputs
    from mdpr.model.inference import Classifier

logger = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="")
REFERENCE_EMBEDDINGS = 5_000  # images of a reference that keep their embedding
WARN_EVERY_S = 60.0
CLOSE_TIMEOUT_S = 10.0
BACKLOG = 4  # times `rows` that may wait while a file is being written


@dataclass(frozen=True)
class LogSettings:
    """The folder of a log, and its bounds."""

    folder: Path
    embeddings: bool = False
    rows: int = 10_000  # of a file
    seconds: float = 300.0  # after which a file is written even if it has fewer
    max_mb: int = 1024  # of all files in the folder


def log_source(classifier: Classifier, address: str) -> LogSource:
    """The model behind recorded answers: `address` is its name, or models:/NAME/VERSION or models:/NAME@ALIAS."""
    model, version = address, ""
    if address.startswith("models:/"):
        model, _, version = address.removeprefix("models:/").replace("@", "/").rpartition("/")
    return LogSource(
        model=model,
        version=version,
        model_digest=classifier.digest,
        class_names=classifier.class_names,
        prior=classifier.prior.name if classifier.prior else "",
    )


def take_answers(outputs: Outputs, *, embeddings: bool, answer_B: Tensor | None = None) -> Answers:
    """The record of a batch: the K best classes without a deployment prior, and the embedding with `embeddings`."""
    best = outputs.fused_BC.detach().float().topk(min(TOP_CLASSES, outputs.fused_BC.shape[1]), dim=-1)
    return Answers(
        class_NK=best.indices.cpu().numpy().astype(np.int32),
        log_probability_NK=best.values.cpu().numpy(),
        embedding_Nd=outputs.image_Bd.detach().float().cpu().numpy() if embeddings else None,
        answer_N=None if answer_B is None else answer_B.cpu().numpy(),
    )


@dataclass
class AnswerRecorder:
    """The log of one process. `record` may be called from any thread; `close` writes what is left."""

    settings: LogSettings
    source: LogSource
    written: int = 0
    dropped: int = 0
    _waiting: list[tuple[Answers, list[Stamp]]] = field(default_factory=list)
    _rows: int = 0
    _files: int = 0
    _closed: bool = False
    _warned_s: float = -WARN_EVERY_S

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._name = f"{socket.gethostname().partition('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._writer = threading.Thread(target=self._write_forever, name="prediction log", daemon=True)
        self._writer.start()

    def record(self, outputs: Outputs, answer_B: Tensor) -> None:
        """Take the answers to a batch. Whatever goes wrong is a warning and a number in `dropped`."""
        try:
            answers = take_answers(outputs, embeddings=self.settings.embeddings, answer_B=answer_B)
            stamp = Stamp(datetime.now(UTC), REQUEST_ID.get())
            with self._changed:
                if self._closed or self._rows >= BACKLOG * self.settings.rows:
                    self._drop(len(answers), "the files before it are not written yet")
                    return
                self._waiting.append((answers, [stamp] * len(answers)))
                self._rows += len(answers)
                if self._rows >= self.settings.rows:
                    self._changed.notify()
        except Exception as error:
            self._drop(len(answer_B), error)

    def close(self) -> None:
        """Write what is left, for at most `CLOSE_TIMEOUT_S`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._writer.join(CLOSE_TIMEOUT_S)

    def _write_forever(self) -> None:
        while True:
            with self._changed:
                due_s = time.monotonic() + self.settings.seconds
                while not self._closed and self._rows < self.settings.rows and time.monotonic() < due_s:
                    self._changed.wait(due_s - time.monotonic())
                taken, closed, self._waiting = self._waiting, self._closed, []
            if taken:
                self._write(taken)
            with self._changed:
                self._rows -= sum(len(answers) for answers, _ in taken)
            if closed:
                return

    def _write(self, taken: list[tuple[Answers, list[Stamp]]]) -> None:
        answers = Answers.join([part for part, _ in taken])
        try:
            folder = self.settings.folder
            folder.mkdir(parents=True, exist_ok=True)
            held = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
            if held >= self.settings.max_mb * 2**20:
                raise OSError(f"{folder} holds {self.settings.max_mb} MB, the limit: move files elsewhere")
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{self._name}-{self._files:06d}.parquet"
            source = self.source.model_copy(update={"dropped": self.dropped})
            write_prediction_log(folder / name, source, answers, [stamp for _, stamps in taken for stamp in stamps])
        except Exception as error:
            self._drop(len(answers), error)
        else:
            self.written += len(answers)
            self._files += 1

    def _drop(self, rows: int, reason: object) -> None:
        self.dropped += rows
        if time.monotonic() - self._warned_s >= WARN_EVERY_S:
            self._warned_s = time.monotonic()
            logger.warning("answers not in the prediction log so far: %d (%s)", self.dropped, one_line(reason))


def check_folder(folder: Path) -> None:
    """Make the folder of a log; raises `DataError` if it cannot be made or written."""
    probe = folder / f".{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"--log {folder} cannot be written ({error.strerror}): name another folder") from None


class ReferenceRecorder:
    """Collects the answers to a test set, with labels; of at most `REFERENCE_EMBEDDINGS` images also the embedding."""

    def __init__(self) -> None:
        from mdpr.evaluation.predictions import Columns  # it imports pandas, which a log does without

        self._columns = Columns()

    def add(self, label_B: Tensor, outputs: Outputs) -> None:
        """Collect a batch: labels (B,) and the model's outputs."""
        taken = take_answers(outputs, embeddings=True)
        assert taken.embedding_Nd is not None
        columns = {name: getattr(taken, name) for name in ("class_NK", "log_probability_NK", "embedding_Nd")}
        self._columns.append(columns | {"label_N": label_B.cpu().numpy()})

    def write(self, evaluation: Path, source: LogSource) -> None:
        """evaluation/reference.parquet: what `mdpr monitor` compares a log with."""
        answers = Answers(**self._columns.arrays())
        assert answers.embedding_Nd is not None
        order_N = np.random.default_rng(0).permutation(len(answers))
        answers.embedding_Nd[order_N[REFERENCE_EMBEDDINGS:]] = np.nan
        write_prediction_log(evaluation / REFERENCE_FILE, source, answers)
