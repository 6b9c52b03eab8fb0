"""The champion behind `mdpr serve`: real requests, every kind of image, and what people send instead of one."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from benchmarks.serving_attacks import peak_mb, run_attacks, serving_bound_mb
from PIL import Image, ImageOps
from tests.integration.conftest import Server

from mdpr import artifacts
from mdpr.artifacts.prediction_log import open_prediction_log
from mdpr.images.decoding import decode_image
from mdpr.mlops import releases
from mdpr.mlops.promotions import move_champion
from mdpr.mlops.registry import Registry
from mdpr.mlops.releases import Parts
from mdpr.mlops.store import connect
from mdpr.model.inference import Classifier
from mdpr.params import DIMENSIONS, RegisterParams, TrackingParams

pytestmark = pytest.mark.integration
TRACKING = TrackingParams(experiment="shoes", model_name="shoes", system_metrics=False)
ORIENTATION = 0x0112  # EXIF


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Nothing in it repeats, so that a rotation or a lost channel shows."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (40, 56, 3), np.uint8)).resize((112, 80), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def images(project_root: Path) -> list[bytes]:
    table = pq.read_table(project_root / "data" / "embedded" / "fashion-mnist" / "test.parquet")
    return [table["image"][row]["bytes"].as_py() for row in range(48)]


@pytest.fixture(scope="module")
def registered(
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    parts: Parts,
    evaluated: Callable[..., Path],
    register_params: RegisterParams,
) -> Iterator[Path]:
    """The folder of a store whose champion is the untrained model."""
    folder = tmp_path_factory.mktemp("registered")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    (folder / "params.yaml").write_text(yaml.safe_dump({"tracking": TRACKING.model_dump()}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        releases.register(parts, evaluated(folder / "evaluation", 0.8, TRACKING), TRACKING, register_params)
        move_champion(Registry(connect(), "shoes"), "1", expected=None)
        yield folder


@pytest.fixture(scope="module")
def server(registered: Path, start_server: Callable[..., Any]) -> Iterator[Server]:
    """A running `mdpr serve`."""
    command = ["-m", "mdpr", "serve", "--port", "{port}", "--params", str(registered / "params.yaml")]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{registered / 'mlflow.db'}"}
    with start_server(command, "/ping", **store) as server:
        yield server
        assert requests.get(f"{server.address}/ping", timeout=10).ok, "the server is down after the tests"


@pytest.fixture(scope="module")
def served(server: Server) -> str:
    """The address of the running `mdpr serve`."""
    return server.address


def ask(address: str, rows: list[Any], **params: Any) -> list[dict[str, Any]]:
    body = {"dataframe_split": {"columns": ["image"], "data": [[row] for row in rows]}, "params": params}
    answer = requests.post(f"{address}/invocations", json=body, timeout=60)
    assert answer.ok, answer.text
    content = json.loads(answer.text, parse_constant=pytest.fail)  # NaN is no JSON
    predictions: list[dict[str, Any]] = content["predictions"]
    return predictions


# --- what the model answers ---------------------------------------------------------------------------------


def test_served_probabilities_are_the_evaluations(served: str, parts: Parts, images: list[bytes]) -> None:
    """The evaluation's own pass (its transform, its batches) over the same images, against the REST endpoint."""
    import torch

    from mdpr.images.loading import eval_transform

    classifier = Classifier.load(parts.model, parts.features)
    backbone = classifier.backbone
    transform = eval_transform(backbone.image_size_px, backbone.image_mean, backbone.image_std)
    batch = torch.stack([transform(decode_image(data, "x")) for data in images])
    fused_BC = classifier(batch).fused_BC.float().exp()
    answers = ask(served, [text(data) for data in images], top_k=10)
    for answer, fused_C in zip(answers, fused_BC, strict=True):
        expected = dict(zip(classifier.class_names, fused_C.tolist(), strict=True))
        assert {item["class"]: item["probability"] for item in answer["top_k"]} == pytest.approx(expected, abs=1e-5)
        assert answer["class"] == classifier.class_names[int(fused_C.argmax())]
        assert answer["probability"] == pytest.approx(float(fused_C.max()), abs=1e-5)


def test_explain_gives_five_weights_with_their_sentences(served: str, parts: Parts, images: list[bytes]) -> None:
    knowledge = artifacts.read_knowledge(parts.knowledge / "knowledge.json")
    names = [item.name for item in knowledge.classes]
    expected = Classifier.load(parts.model, parts.features).predict([decode_image(item, "x") for item in images[:3]])
    answers = ask(served, [text(item) for item in images[:3]], explain=True, top_k=1)
    for answer, prediction in zip(answers, expected, strict=True):
        weights = {key: item["weight"] for key, item in answer["routing"].items()}
        assert set(weights) == set(DIMENSIONS)
        assert weights == pytest.approx(prediction.routing, abs=1e-5)
        sentences = knowledge.classes[names.index(answer["class"])].sentences
        assert {key: item["sentence"] for key, item in answer["routing"].items()} == sentences
    assert "routing" not in ask(served, [text(images[0])])[0]


def test_every_kind_of_image_is_read(served: str, parts: Parts, picture: Image.Image) -> None:
    """Each file's answer is that of the picture a person sees when opening it."""
    grey = ImageOps.grayscale(picture)
    alpha = picture.copy()
    alpha.putalpha(128)
    on_white = Image.alpha_composite(Image.new("RGBA", alpha.size, "white"), alpha).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was turned
    turned = encode(picture.rotate(90, expand=True), "PNG", exif=exif)
    files: dict[str, tuple[bytes, Image.Image]] = {
        "png": (encode(picture, "PNG"), picture),
        "webp": (encode(picture, "WEBP", lossless=True), picture),
        "greyscale": (encode(grey, "PNG"), grey.convert("RGB")),
        "alpha": (encode(alpha, "PNG"), on_white),
        "exif": (turned, picture),
    }
    for name, image in {"jpeg": picture, "jpeg grey": grey, "cmyk": picture.convert("CMYK")}.items():
        data = encode(image, "JPEG", quality=95)
        files[name] = (data, Image.open(io.BytesIO(data)).convert("RGB"))
    expected = Classifier.load(parts.model, parts.features).predict([image for _, image in files.values()])
    answers = ask(served, [text(data) for data, _ in files.values()])
    for name, answer, prediction in zip(files, answers, expected, strict=True):
        assert answer["error"] is None, name
        assert (answer["class"], answer["probability"]) == (
            prediction.class_name,
            pytest.approx(prediction.probability, abs=1e-5),
        ), name


# --- what is not an image -----------------------------------------------------------------------------------


def bomb(width_px: int, height_px: int) -> bytes:
    """A valid PNG of black pixels: kilobytes that decode to gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width_px, height_px, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + -(-width_px // 8)) * height_px), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bad_image_spoils_its_row_alone(served: str, images: list[bytes], picture: Image.Image) -> None:
    good = text(images[0])
    wrapped = "\n".join(good[start : start + 76] for start in range(0, len(good), 76))
    jpeg = encode(picture, "JPEG")
    bad = {
        "not base64 text": "no base64!",
        "is not an image": text(b"<html>not an image</html>"),
        "cannot be decoded": text(jpeg[: len(jpeg) // 2]),
        "pixels, more than": text(bomb(10_000, 10_000)),
        "must be base64 text or bytes": None,
        "is empty": "",
        "the image is not base64": "é",
        "more than 20,971,520 bytes": "A" * 28_000_004,
    }
    answers = ask(served, [good, *bad.values(), wrapped], top_k=2)
    assert [answers[0]["error"], answers[-1]["error"]] == [None, None]
    assert answers[0]["class"] == answers[-1]["class"]
    for words, answer in zip(bad, answers[1:-1], strict=True):
        assert words in answer["error"]
        assert (answer["class"], answer["probability"], answer["top_k"]) == (None, None, None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}, "image"),
        ({"dataframe_split": {"columns": ["image"], "data": [["x"]] * 10_000}}, "10000 images in one request"),
        ({"dataframe_split": {"columns": ["image"], "data": [["x"]]}, "params": {"top_k": 0}}, "from 1 to 100"),
        ({"dataframe_split": {"columns": ["image"], "data": [["x"]]}, "params": {"top_k": "all"}}, "top_k"),
        ({"images": ["x"]}, "dataframe_split"),
        ("{", ""),
    ],
    ids=["columns", "10000 images", "top_k", "top_k type", "no frame", "no JSON"],
)
def test_a_malformed_request_is_refused(served: str, body: Any, message: str) -> None:
    sent = {"data": body, "headers": {"Content-Type": "application/json"}} if isinstance(body, str) else {"json": body}
    refused = requests.post(f"{served}/invocations", timeout=60, **sent)
    assert refused.status_code == 400, refused.text
    assert message in refused.text
    assert requests.get(f"{served}/ping", timeout=10).ok


def test_attacks_are_answered_or_refused_in_bounded_memory(server: Server) -> None:
    outcomes = run_attacks(server.address)
    assert [outcome for outcome in outcomes if not outcome.survived] == []
    assert len(outcomes) > 40
    assert server.process is not None
    assert peak_mb(server.process.pid) < serving_bound_mb()


# --- in Python ----------------------------------------------------------------------------------------------


def test_bytes_are_taken_in_python(registered: Path, served: str, images: list[bytes]) -> None:
    model = mlflow.pyfunc.load_model("models:/shoes@champion")
    answers = model.predict(pd.DataFrame({"image": images[:3]})).to_dict("records")
    assert [answer["probability"] for answer in answers] == pytest.approx(
        [answer["probability"] for answer in ask(served, [text(data) for data in images[:3]])], abs=1e-5
    )


def test_the_model_loads_without_the_pipeline(registered: Path, images: list[bytes], tmp_path: Path) -> None:
    """In a process that has neither this project on its path nor anything that serving does not require."""
    (tmp_path / "image.png").write_bytes(images[0])
    program = f"""
import sys
sys.path[:] = [path for path in sys.path if not path.endswith("/src")]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
for name in ("kfp", "dvc", "langchain", "great_expectations", "altair", "hypothesis", "sklearn"):
    sys.modules[name] = None
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/shoes@champion")
answer = model.predict(pandas.DataFrame({{"image": [open("image.png", "rb").read()]}}))
import mdpr
assert "{Path(__file__).parents[2]}" not in mdpr.__file__, mdpr.__file__
assert answer["error"][0] is None
"""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{registered / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_serving_what_is_not_there_is_one_line(registered: Path) -> None:
    command = [sys.executable, "-m", "mdpr", "serve", "--alias", "nobody", "--params", str(registered / "params.yaml")]
    done = subprocess.run(command, cwd=registered, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: shoes has no version with the alias nobody: run promote, or name another alias"
    )


# --- log and prior ------------------------------------------------------------------------------------------


def test_every_worker_logs_its_answers_and_the_prior_is_exact(
    registered: Path, start_server: Callable[..., Any], images: list[bytes], tmp_path: Path
) -> None:
    names = Classifier.load("models:/shoes@champion").class_names
    share_C = np.arange(1, len(names) + 1) / sum(range(len(names) + 1))
    (tmp_path / "prior.json").write_text(json.dumps(dict(zip(names, share_C.tolist(), strict=True))))
    command = ["-m", "mdpr", "serve", "--port", "{port}", "--params", str(registered / "params.yaml"), "--workers", "2"]
    command += ["--log", str(tmp_path / "log"), "--log-embeddings", "--prior", str(tmp_path / "prior.json")]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{registered / 'mlflow.db'}"}
    with start_server(command, "/ping", **store) as server:
        answers = {}
        for index, data in enumerate(images[:12]):
            body = {"inputs": [text(data)], "params": {"top_k": len(names)}}
            sent = requests.post(
                f"{server.address}/invocations", json=body, headers={"X-Request-Id": f"r{index}"}, timeout=60
            )
            assert (sent.status_code, sent.headers["X-Request-Id"]) == (200, f"r{index}"), sent.text
            answers[f"r{index}"] = sent.json()["predictions"][0]
        assert "mdpr_answers_dropped_total" in requests.get(f"{server.address}/metrics", timeout=10).text
        said = server.log.read_text()
        server.kill(signal.SIGTERM)  # what is not on the disk yet is written now
    assert "deployment prior" in said
    files = open_prediction_log(tmp_path / "log").files
    assert {(file.source.model, file.source.version, file.has_embeddings) for file in files} == {("shoes", "1", True)}
    rows = pd.concat([pq.read_table(file.path).to_pandas() for file in files])
    assert sorted(rows["request"]) == sorted(answers)
    for row in rows.to_dict("records"):
        answer = answers[row["request"]]
        assert row["class"] == answer["class"]
        adjusted = {
            names[index]: np.exp(value) * share_C[index]  # the model's loss made it expect all classes alike
            for index, value in zip(row["classes"], row["log_probabilities"], strict=True)
        }
        total = sum(adjusted.values())
        for item in answer["top_k"]:
            assert item["probability"] == pytest.approx(adjusted[item["class"]] / total, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prior", "nowhere.json"], "--prior nowhere.json must be uniform or a JSON file"),
        (["--log", "params.yaml/log"], "cannot be written"),
    ],
)
def test_a_prior_or_a_log_that_cannot_be_used_is_one_line(registered: Path, options: list[str], words: str) -> None:
    command = [sys.executable, "-m", "mdpr", "serve", "--params", str(registered / "params.yaml"), *options]
    done = subprocess.run(command, cwd=registered, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
