"""The input of an analysis: the answers to a labelled test set, and a bounded sample of a prediction log.

Shapes: N images, C classes, K recorded classes, d joint embedding width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mdpr.artifacts import read_shots
from mdpr.artifacts.prediction_log import (
    REFERENCE_FILE,
    TOP_CLASSES,
    Answers,
    LogFile,
    LogSource,
    open_log_file,
    open_prediction_log,
)
from mdpr.errors import ArtifactError

logger = logging.getLogger(__name__)

MAX_CELLS = 20_000_000  # recorded classes held in memory; beyond it, a log is sampled
MAX_EMBEDDINGS = 5_000


@dataclass(frozen=True)
class Reference:
    """Answers to a test set with its labels; `shots` are the classes' shot groups, None if only the file was named."""

    source: LogSource
    answers: Answers
    shots: Sequence[str] | None = None

    @property
    def label_N(self) -> np.ndarray:
        assert self.answers.label_N is not None
        return self.answers.label_N

    @property
    def classes(self) -> int:
        return len(self.source.class_names)


def read_reference(path: Path) -> Reference:
    """The folder that evaluate wrote, or a file like its reference.parquet; raises `ArtifactError`."""
    file = path / REFERENCE_FILE if path.is_dir() else path
    if not file.is_file():
        raise ArtifactError(f"{file} is missing: run evaluate again, or name its folder with --reference")
    opened = open_log_file(file)
    parts = [answers for answers, _ in opened.parts(embeddings=opened.has_embeddings)]
    if not parts or parts[0].label_N is None:
        raise ArtifactError(f"{file} has no labelled answers: name the reference.parquet that evaluate wrote")
    return Reference(opened.source, Answers.join(parts), read_shots(path) if path.is_dir() else None)


@dataclass(frozen=True)
class Sample:
    """The answers of a log to be judged.

    images          all rows of the reference's model, of which `answers` is a uniform sample
    counted_C       how often each class is the most probable one, over all of them
    embedding_nd    of at most `MAX_EMBEDDINGS` of them; None if they are not in the log
    priors          deployment priors that the answers were given under, "" for none
    faults          a line per file that cannot be read
    other_images    rows of other models; they are not judged
    dropped         answers that the servers could not write
    """

    images: int
    answers: Answers
    counted_C: np.ndarray
    embedding_nd: np.ndarray | None
    priors: tuple[str, ...]
    faults: tuple[str, ...]
    other_images: int
    dropped: int
    first: datetime
    last: datetime


def read_sample(path: Path, reference: LogSource, *, max_cells: int = MAX_CELLS, seed: int = 0) -> Sample:
    """Read a log file by file; what is damaged is a warning and stops no other.

    Raises `ArtifactError` if nothing is there, or only answers of another model or other classes.
    """
    log = open_prediction_log(path)
    faults = list(log.faults)
    own = [file for file in log.files if file.source.model_digest == reference.model_digest]
    others = sum(file.rows for file in log.files if file not in own)
    if not own:
        found = log.files[0].source
        what = "other classes" if found.class_names != reference.class_names else "another model"
        named = f"{found.model} {found.version}".strip()
        raise ArtifactError(
            f"{path} holds the answers of {what} ({named}) than the reference ({reference.model}): "
            "name the log of the model that was evaluated"
        )
    recorded = min(len(reference.class_names), TOP_CLASSES)
    rows = sum(file.rows for file in own)
    generator = np.random.default_rng(seed)
    keep = min(1.0, max_cells / max(1, rows * recorded))
    with_embeddings = all(file.has_embeddings for file in own)
    keep_embedding = min(1.0, MAX_EMBEDDINGS / max(1, rows))
    parts: list[Answers] = []
    embeddings: list[np.ndarray] = []
    counted_C = np.zeros(len(reference.class_names), dtype=np.int64)
    images, times = 0, []
    for file in own:
        try:
            for answers, time_N in file.parts(embeddings=with_embeddings):
                images += len(answers)
                counted_C += np.bincount(answers.top1_N, minlength=len(counted_C))
                times += [time_N.min(), time_N.max()] if len(answers) else []
                kept = slice(None) if keep == 1 else np.flatnonzero(generator.random(len(answers)) < keep)
                parts.append(Answers(answers.class_NK[kept], answers.log_probability_NK[kept]))
                if answers.embedding_Nd is not None:
                    drawn = answers.embedding_Nd[generator.random(len(answers)) < keep_embedding]
                    embeddings.append(drawn[np.isfinite(drawn).all(axis=1)])
        except ArtifactError as error:
            faults.append(str(error))
    for fault in faults:
        logger.warning("%s: left out", fault)
    if not images:
        more = f"; the first fault: {faults[0]}" if faults else ""
        raise ArtifactError(f"{path} holds no answers of {reference.model} yet: serve with --log and wait{more}")
    return Sample(
        images=images,
        answers=Answers.join(parts),
        counted_C=counted_C,
        embedding_nd=np.concatenate(embeddings) if embeddings else None,
        priors=tuple(sorted({file.source.prior for file in own})),
        faults=tuple(faults),
        other_images=others,
        dropped=_dropped(own),
        first=_utc(min(times)),
        last=_utc(max(times)),
    )


def _dropped(files: Sequence[LogFile]) -> int:
    """The counter of each process, which only grows: its last file has it. A file's name starts with its time."""
    last: dict[str, int] = {}
    for file in files:
        process = file.path.stem.partition("-")[2].rpartition("-")[0]
        last[process] = max(last.get(process, 0), file.source.dropped)
    return sum(last.values())


def _utc(time: np.datetime64) -> datetime:
    return datetime.fromtimestamp(time.astype("datetime64[ms]").astype(np.int64) / 1000, UTC)
