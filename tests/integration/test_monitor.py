"""From images to advice with a real model: an evaluation's reference, the log of `mdpr predict`, `mdpr monitor`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from mdpr.artifacts.prediction_log import open_prediction_log
from mdpr.commands.models import predict
from mdpr.commands.monitor import monitor
from mdpr.mlops.releases import Parts
from mdpr.model.inference import Classifier
from mdpr.monitoring.recording import ReferenceRecorder, log_source

pytestmark = pytest.mark.integration
IMAGES = 60


@pytest.fixture(scope="module")
def photos(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, their labels beside them."""
    folder = tmp_path_factory.mktemp("photos")
    table = pq.read_table(project_root / "data" / "embedded" / "fashion-mnist" / "test.parquet")
    for row in range(IMAGES):
        (folder / f"{row:03}.png").write_bytes(table["image"][row]["bytes"].as_py())
    (folder / "labels.json").write_text(json.dumps(table["label"][:IMAGES].to_pylist()))
    return folder


def test_a_log_of_predict_is_what_monitor_reads(
    parts: Parts, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier = Classifier.load(parts.model, parts.features)
    files = sorted(photos.glob("*.png"))
    outputs = classifier(torch.stack([classifier.preprocess(path) for path in files]))
    reference = ReferenceRecorder()
    reference.add(torch.tensor(json.loads((photos / "labels.json").read_text())), outputs)
    reference.write(tmp_path, log_source(classifier, "shoes"))

    names = classifier.class_names
    share_C = np.arange(1, len(names) + 1) / sum(range(len(names) + 1))
    (tmp_path / "prior.json").write_text(json.dumps(dict(zip(names, share_C.tolist(), strict=True))))
    model = ["--model", str(parts.model), "--features", str(parts.features), "--log", "log", "--log-embeddings"]
    done = CliRunner().invoke(predict, [str(photos), *model, "--prior", "prior.json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "deployment prior prior.json" in done.stderr
    assert f"{IMAGES} answers in log, 0 not" in done.stderr

    with open("predictions.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    # The model's loss adjusts logits: its answers assume all classes alike.
    adjusted_NC = outputs.fused_BC.double().exp().numpy() * share_C
    adjusted_NC /= adjusted_NC.sum(axis=1, keepdims=True)
    assert [row["class"] for row in rows] == [names[index] for index in adjusted_NC.argmax(axis=1)]
    found = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(found, adjusted_NC.max(axis=1), atol=1e-4)

    (file,) = open_prediction_log(Path("log")).files
    assert (file.source.prior, file.source.model_digest) == ("prior.json", classifier.digest)
    (part,) = [answers for answers, _ in file.parts()]
    np.testing.assert_array_equal(part.top1_N, outputs.fused_BC.argmax(dim=1).numpy())  # without the prior

    options = ["--log", "log", "--reference", "reference.parquet", "--resamplings", "20", "--no-mlflow"]
    judged = CliRunner().invoke(monitor, [*options, "--min-images", "10"], catch_exceptions=False)
    content = json.loads(Path("data/monitor/monitor.json").read_text())
    assert (judged.exit_code, content["advice"], content["images"]) == (0, "keep", IMAGES)
    assert content["drift"]["features"] == "embeddings"
    again = CliRunner().invoke(predict, [str(photos), *model[:4], "--prior", "data/monitor/monitor.json"])
    assert again.exit_code == 0, again.output
