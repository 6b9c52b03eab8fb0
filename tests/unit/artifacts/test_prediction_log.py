"""A prediction log comes back as it was written; a damaged file is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mdpr.artifacts.prediction_log import (
    METADATA_KEY,
    Answers,
    LogSource,
    open_log_file,
    open_prediction_log,
    write_prediction_log,
)
from mdpr.errors import ArtifactError

NAMES = ("boot", "bag", "coat")
SOURCE = LogSource(model="shoes", version="3", model_digest="d", class_names=NAMES)


def answers(images: int = 4, width: int = 2, *, labels: bool = False) -> Answers:
    generator = np.random.default_rng(0)
    probability_NC = generator.dirichlet(np.ones(len(NAMES)), images)
    class_NK = np.argsort(-probability_NC, axis=1).astype(np.int32)
    embedding_Nd = generator.normal(size=(images, width)).astype(np.float16).astype(np.float32)
    return Answers(
        class_NK,
        np.log(np.take_along_axis(probability_NC, class_NK, axis=1)).astype(np.float32),
        embedding_Nd,
        generator.integers(0, len(NAMES), images) if labels else None,
        class_NK[:, 1].astype(np.int64),
    )


def read(path: Path, *, embeddings: bool = True) -> Answers:
    return Answers.join([part for part, _ in open_log_file(path).parts(embeddings=embeddings)])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = answers(labels=True)
    assert written.embedding_Nd is not None
    written.embedding_Nd[1] = np.nan  # an image without an embedding
    write_prediction_log(tmp_path / "a.parquet", SOURCE, written)
    found = open_log_file(tmp_path / "a.parquet")
    assert (found.source, found.rows, found.has_embeddings) == (SOURCE, 4, True)
    back = read(tmp_path / "a.parquet")
    for name in ("class_NK", "log_probability_NK", "embedding_Nd", "label_N"):
        np.testing.assert_array_equal(getattr(back, name), getattr(written, name))
    table = pq.read_table(tmp_path / "a.parquet").to_pandas()
    assert table["class"].tolist() == [NAMES[index] for index in written.answer_N.tolist()]  # type: ignore[union-attr]
    assert not any(path.suffix != ".parquet" for path in tmp_path.iterdir())


def test_the_same_reference_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_prediction_log(tmp_path / name, SOURCE, answers(labels=True))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_no_rows_are_a_log_without_answers(tmp_path: Path) -> None:
    write_prediction_log(tmp_path / "a.parquet", SOURCE, answers(0))
    assert open_log_file(tmp_path / "a.parquet").rows == 0
    assert list(open_log_file(tmp_path / "a.parquet").parts(embeddings=True)) == []


def replace_column(path: Path, name: str, values: pa.Array) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.names.index(name), name, values), path)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("classes", pa.array([[0, 1, 2], [0, 1, 3], [0, 1, 2], [0, 1, 2]]), "classes must lie between 0 and 2"),
        ("classes", pa.array([[0, 1, 2], [0, 1], [0, 1, 2], [0, 1, 2]]), "classes must hold 3 values"),
        ("classes", pa.array([[0, 1, 2], None, [0, 1, 2], [0, 1, 2]]), "classes must hold 3 values"),
        ("log_probabilities", pa.array([[0.5, -1.0, -1.0]] * 4), "at most 0"),
        ("log_probabilities", pa.array([[float("nan"), -1.0, -1.0]] * 4), "at most 0"),
        ("label", pa.array([0, 1, 2, 9]), "label must lie"),
        ("embedding", pa.array([[float("inf"), 1.0]] * 4, pa.list_(pa.float32())), "embedding must be finite"),
    ],
)
def test_a_damaged_column_is_one_line(tmp_path: Path, name: str, values: pa.Array, words: str) -> None:
    path = tmp_path / "a.parquet"
    write_prediction_log(path, SOURCE, answers(labels=True))
    replace_column(path, name, values)
    with pytest.raises(ArtifactError, match=words) as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_one_bad_file_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    write_prediction_log(tmp_path / "day" / "a.parquet", SOURCE, answers())
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "day" / "a.parquet").read_bytes()[:-50])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({METADATA_KEY: "{}"}), tmp_path / "other.parquet")
    log = open_prediction_log(tmp_path)
    assert [file.path.name for file in log.files] == ["a.parquet"]
    assert len(log.faults) == 3
    assert all("\n" not in fault for fault in log.faults)


@pytest.mark.parametrize("kind", ["missing", "empty folder", "no parquet", "only damaged"])
def test_a_path_without_a_log_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind != "missing":
        path.mkdir()
    if kind == "no parquet":
        (path / "a.txt").touch()
    if kind == "only damaged":
        (path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="prediction log"):
        open_prediction_log(path)
