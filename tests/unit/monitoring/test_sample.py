"""Logs as they are found: damaged files, other models, empty ones, large ones."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.unit.monitoring.conftest import EVEN_C, NAMES, SHIFTED_C, SHOTS, SOURCE, MakeAnswers, write_per_class

from mdpr.artifacts.prediction_log import REFERENCE_FILE, write_prediction_log
from mdpr.errors import ArtifactError
from mdpr.monitoring.sample import Reference, read_reference, read_sample

WriteLog = Callable[..., None]


def test_a_reference_comes_back(reference: Reference, tmp_path: Path) -> None:
    write_prediction_log(tmp_path / REFERENCE_FILE, SOURCE, reference.answers)
    write_per_class(tmp_path, NAMES, SHOTS)
    for path, shots in ((tmp_path, list(SHOTS)), (tmp_path / REFERENCE_FILE, None)):
        found = read_reference(path)
        np.testing.assert_array_equal(found.label_N, reference.label_N)
        assert (found.source, found.shots) == (SOURCE, shots)
    (tmp_path / "per_class.csv").unlink()
    with pytest.raises(ArtifactError, match=r"per_class\.csv"):
        read_reference(tmp_path)


def test_a_reference_without_labels_or_at_all_is_one_line(
    answers: MakeAnswers, write_log: WriteLog, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="run evaluate again"):
        read_reference(tmp_path)
    write_log(tmp_path / "log.parquet", answers(EVEN_C, 5, seed=0))
    with pytest.raises(ArtifactError, match="no labelled answers"):
        read_reference(tmp_path / "log.parquet")


def test_files_of_all_workers_are_one_sample(answers: MakeAnswers, write_log: WriteLog, tmp_path: Path) -> None:
    parts = [answers(SHIFTED_C, images, seed=images) for images in (30, 40)]
    write_log(tmp_path / "20260101T000000-a-1-00-000000.parquet", parts[0], dropped=2)
    write_log(tmp_path / "20260101T000001-a-1-00-000001.parquet", parts[0], dropped=5)
    write_log(tmp_path / "20260101T000002-b-2-00-000000.parquet", parts[1], prior="uniform")
    found = read_sample(tmp_path, SOURCE)
    assert (found.images, len(found.answers), found.dropped, found.priors) == (100, 100, 5, ("", "uniform"))
    assert found.embedding_nd is not None
    assert len(found.embedding_nd) == 100
    counted_C = 2 * np.bincount(parts[0].top1_N, minlength=len(NAMES)) + np.bincount(
        parts[1].top1_N, minlength=len(NAMES)
    )
    np.testing.assert_array_equal(found.counted_C, counted_C)
    assert found.first <= found.last


def test_one_bad_file_stops_nobody_and_is_said(
    answers: MakeAnswers, write_log: WriteLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path / "a.parquet", answers(EVEN_C, 30, seed=0))
    good = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(good[:100])
    spoilt = bytearray(good)
    spoilt[40:400] = bytes(360)  # the pages, not the footer
    (tmp_path / "c.parquet").write_bytes(spoilt)
    with caplog.at_level(logging.WARNING):
        found = read_sample(tmp_path, SOURCE)
    assert found.images == 30
    assert len(found.faults) == 2
    assert all(name in caplog.text for name in ("b.parquet", "c.parquet"))


def test_answers_of_other_models_are_left_out_and_counted(
    answers: MakeAnswers, write_log: WriteLog, tmp_path: Path
) -> None:
    write_log(tmp_path / "a.parquet", answers(EVEN_C, 30, seed=0))
    write_log(tmp_path / "b.parquet", answers(EVEN_C, 20, seed=1), version="4", model_digest="other")
    found = read_sample(tmp_path, SOURCE)
    assert (found.images, found.other_images) == (30, 20)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"model_digest": "other", "version": "4"}, "another model (shoes 4)"),
        ({"model_digest": "other", "class_names": (*NAMES[:-1], "cap")}, "other classes"),
    ],
)
def test_a_log_of_another_model_is_one_line(
    answers: MakeAnswers, write_log: WriteLog, tmp_path: Path, source: dict[str, str], words: str
) -> None:
    write_log(tmp_path / "a.parquet", answers(EVEN_C, 30, seed=0), **source)
    with pytest.raises(ArtifactError) as raised:
        read_sample(tmp_path, SOURCE)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_log_is_one_line(answers: MakeAnswers, write_log: WriteLog, tmp_path: Path) -> None:
    write_log(tmp_path / "a.parquet", answers(EVEN_C, 0, seed=0))
    with pytest.raises(ArtifactError, match="no answers of shoes yet"):
        read_sample(tmp_path, SOURCE)


def test_a_log_beyond_the_bound_is_sampled(answers: MakeAnswers, write_log: WriteLog, tmp_path: Path) -> None:
    write_log(tmp_path / "a.parquet", answers(SHIFTED_C, 20_000, seed=12))
    found = read_sample(tmp_path, SOURCE, max_cells=len(NAMES) * 1000)
    assert found.images == 20_000
    assert 850 < len(found.answers) < 1150
    sampled_C = np.bincount(found.answers.top1_N, minlength=len(NAMES)) / len(found.answers)
    np.testing.assert_allclose(sampled_C, found.counted_C / 20_000, atol=0.06)
    assert found.embedding_nd is not None
    assert len(found.embedding_nd) < 6000


MILLION = """
import resource, sys
from pathlib import Path
from mdpr.monitoring.sample import read_sample
from mdpr.monitoring.shift import calibrate, estimate_label_shares
from mdpr.monitoring.sample import read_reference
reference = read_reference(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read_sample(Path(sys.argv[2]), reference.source)
estimate_label_shares(reference, calibrate(reference), found.answers)
print(found.images, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_million_answers_in_bounded_memory(
    reference: Reference, answers: MakeAnswers, write_log: WriteLog, tmp_path: Path
) -> None:
    write_prediction_log(tmp_path / REFERENCE_FILE, SOURCE, reference.answers)
    part = answers(SHIFTED_C, 50_000, seed=0)
    for index in range(20):
        write_log(tmp_path / "log" / f"{index}.parquet", part, embeddings=index == 0)
    command = [sys.executable, "-c", MILLION, str(tmp_path / REFERENCE_FILE), str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    images, grown_mb = map(int, done.stdout.split())
    assert images == 1_000_000
    assert grown_mb < 1000
