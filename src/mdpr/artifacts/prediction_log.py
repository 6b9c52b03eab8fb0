"""Prediction logs: the answers of a served model, and `reference.parquet`, its answers to the test set.

Parquet, one row per image, without the image:

    time                timestamp     when it was answered, UTC; in reference.parquet 1970, so that the same answers
                                      make the same bytes
    model, version      string        name and version in the registry, or the folder of the model
    request             string        id of the request
    class               string        the answer, a deployment prior included
    classes             list<int32>   the K most probable classes by index, best first, without a deployment prior
    log_probabilities   list<float32> of `classes`, without a deployment prior
    embedding           list<float16> d image features of unit length, or null; the column is optional
    label               int64         the image's class; only in reference.parquet

The metadata of each file names the format, the digest of the model, its classes, and the deployment prior.
K is min(100, C). Classes beyond it are taken as impossible.

Shapes: N images, C classes, K recorded classes, d joint embedding width.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ValidationError

from mdpr.artifacts.formats import Format
from mdpr.errors import ArtifactError, MdprError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

REFERENCE_FILE = "reference.parquet"  # in evaluation/
TOP_CLASSES = 100
READ_ROWS = 50_000  # at once
PARTIAL_SUFFIX = ".partial"
METADATA_KEY = b"mdpr"
LOG_PROBABILITY_SLACK = 1e-3  # rounding may lift a probability above 1


class LogSource(Format):
    """The model that a log file belongs to. `dropped`: answers that its process could not write until then."""

    format: Literal["mdpr-prediction-log/1"] = "mdpr-prediction-log/1"
    model: str
    version: str
    model_digest: str
    class_names: tuple[str, ...]
    prior: str = ""
    dropped: int = 0


@dataclass(frozen=True)
class Answers:
    """Answers to N images: the columns above, as arrays. An embedding that is null is NaN; `answer_N` is never read."""

    class_NK: np.ndarray
    log_probability_NK: np.ndarray
    embedding_Nd: np.ndarray | None = None
    label_N: np.ndarray | None = None
    answer_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.class_NK)

    @property
    def top1_N(self) -> np.ndarray:
        """The most probable class without a deployment prior."""
        return self.class_NK[:, 0]

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Answers:
        """Several answers, one after the other; all of them have the same columns."""
        columns = ("class_NK", "log_probability_NK", "embedding_Nd", "label_N", "answer_N")
        values = [[getattr(part, name) for part in parts] for name in columns]
        return cls(*(None if column[0] is None else np.concatenate(column) for column in values))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stamp:
    """When and for which request an image was answered."""

    time: datetime
    request: str


def write_prediction_log(path: Path, source: LogSource, answers: Answers, stamps: Sequence[Stamp] = ()) -> None:
    """`answers` as a file that is whole on the disk before it has its name. Raises `OSError`.

    Without `stamps` it is a reference: nobody sent a request.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = len(answers)
    stamps = stamps or [Stamp(datetime.fromtimestamp(0, UTC), "")] * images
    names = pa.array(source.class_names, pa.string())
    columns: dict[str, pa.Array] = {
        "time": pa.array([stamp.time for stamp in stamps], pa.timestamp("ms", tz="UTC")),
        "model": pa.array([source.model] * images, pa.string()),
        "version": pa.array([source.version] * images, pa.string()),
        "request": pa.array([stamp.request for stamp in stamps], pa.string()),
        "class": names.take(pa.array(answers.top1_N if answers.answer_N is None else answers.answer_N)),
        "classes": _lists(answers.class_NK.astype(np.int32)),
        "log_probabilities": _lists(answers.log_probability_NK.astype(np.float32)),
    }
    if answers.embedding_Nd is not None:
        missing_N = np.isnan(answers.embedding_Nd).any(axis=1)
        columns["embedding"] = _lists(answers.embedding_Nd.astype(np.float16), missing_N)
    if answers.label_N is not None:
        columns["label"] = pa.array(answers.label_N, pa.int64())
    table = pa.table(columns).replace_schema_metadata({METADATA_KEY: source.model_dump_json()})
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _lists(value_NK: np.ndarray, missing_N: np.ndarray | None = None) -> pa.Array:
    import pyarrow as pa

    images, width = value_NK.shape
    missing_N = np.zeros(images, dtype=bool) if missing_N is None else missing_N
    ends = np.concatenate([[0], np.cumsum(np.where(missing_N, 0, width))]).astype(np.int32)
    values = pa.array(value_NK[~missing_N].ravel())
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=pa.array(missing_N))


@dataclass(frozen=True)
class LogFile:
    """A readable file of a log: what it belongs to and how many rows it has."""

    path: Path
    source: LogSource
    rows: int
    has_embeddings: bool

    def parts(self, *, embeddings: bool = False) -> Iterator[tuple[Answers, np.ndarray]]:
        """The rows in order, with their times (N,), a bounded number at once. Raises `ArtifactError` if damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = ["time", "classes", "log_probabilities", *(["embedding"] if embeddings else [])]
        try:
            with pq.ParquetFile(self.path) as file:
                labels = ["label"] if "label" in file.schema_arrow.names else []
                for batch in file.iter_batches(READ_ROWS, columns=[*wanted, *labels]):
                    yield _answers(batch, self.source, embeddings), batch["time"].to_numpy(zero_copy_only=False)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{self.path} is damaged ({one_line(error)[:200]})") from None


def open_log_file(path: Path) -> LogFile:
    """Raises `ArtifactError` for a file that is none of a prediction log."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file ({one_line(error)[:200]})") from None
    content = (schema.metadata or {}).get(METADATA_KEY)
    if content is None:
        raise ArtifactError(f"{path} is not a prediction log (mdpr-prediction-log/1)")
    try:
        source = LogSource.model_validate(json.loads(content))
    except (ValueError, ValidationError):
        raise ArtifactError(f"{path}: the metadata of the prediction log (mdpr-prediction-log/1) is damaged") from None
    return LogFile(path, source, rows, "embedding" in schema.names)


@dataclass
class PredictionLog:
    """The files of a log, and a line on each one that cannot be read."""

    files: list[LogFile] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def open_prediction_log(path: Path) -> PredictionLog:
    """A file, or all below a folder. Raises `ArtifactError` if there is no such path, or nothing in it is a log."""
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: name the file or folder of a prediction log (mdpr serve --log)")
    found = PredictionLog()
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
        try:
            found.files.append(open_log_file(file))
        except MdprError as error:
            found.faults.append(str(error))
    if not found.files:
        more = f"; the first fault: {found.faults[0]}" if found.faults else ""
        raise ArtifactError(f"{path} holds no prediction log: serve with --log, or name another folder{more}")
    return found


def _answers(batch: pa.RecordBatch, source: LogSource, embeddings: bool) -> Answers:
    """One batch, checked; raises `ValueError`."""
    classes = len(source.class_names)
    class_NK = _matrix(batch, "classes", min(classes, TOP_CLASSES)).astype(np.int32)
    log_probability_NK = _matrix(batch, "log_probabilities", class_NK.shape[1]).astype(np.float32)
    if batch.num_rows and not (class_NK.min() >= 0 and class_NK.max() < classes):
        raise ValueError(f"classes must lie between 0 and {classes - 1}")
    if np.isnan(log_probability_NK).any() or (log_probability_NK > LOG_PROBABILITY_SLACK).any():
        raise ValueError("log_probabilities must be at most 0")
    label_N = None
    if "label" in batch.schema.names:
        label_N = batch["label"].to_numpy(zero_copy_only=False)
        if batch.num_rows and not (label_N.min() >= 0 and label_N.max() < classes):
            raise ValueError(f"label must lie between 0 and {classes - 1}")
    return Answers(class_NK, log_probability_NK, _embeddings(batch) if embeddings else None, label_N)


def _embeddings(batch: pa.RecordBatch) -> np.ndarray:
    """(N, d) float32, NaN if an image has none."""
    there_N = batch["embedding"].is_valid().to_numpy(zero_copy_only=False)
    found_nd = _matrix(batch.filter(batch["embedding"].is_valid()), "embedding").astype(np.float32)
    if not np.isfinite(found_nd).all():
        raise ValueError("embedding must be finite")
    embedding_Nd = np.full((batch.num_rows, found_nd.shape[1]), np.nan, dtype=np.float32)
    embedding_Nd[there_N] = found_nd
    return embedding_Nd


def _matrix(batch: pa.RecordBatch, name: str, width: int | None = None) -> np.ndarray:
    """A column of lists of one length, (N, width)."""
    column = batch[name]
    values: Any = column.flatten()
    width = len(values) // max(1, batch.num_rows) if width is None else width
    if column.null_count or values.null_count or len(values) != batch.num_rows * width:
        raise ValueError(f"{name} must hold {width} values in each row")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(batch.num_rows, width)
