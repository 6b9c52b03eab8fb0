"""A real (untrained) model on the embedded backbone, registered, promoted and served by real MLflow."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests

from mdpr import artifacts
from mdpr.config import BackboneParams, EncodeParams, RegisterParams, TrackingParams, TuneParams
from mdpr.errors import ArtifactError, TrackingError
from mdpr.registry import releases
from mdpr.registry.gate import Policy, read_policy
from mdpr.registry.served_model import Parts, requirements
from mdpr.tracking.runs import open_run
from mdpr.tracking.store import Store, connect

pytestmark = pytest.mark.integration
CLASSES, IMAGES_PER_CLASS = 10, 30
TRACKING = TrackingParams(experiment="shoes", model_name="shoes")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Parts:
    """knowledge/, features/ and model/ as the stages write them; the prompts and the router are not trained."""
    import torch

    from mdpr.model.backbone import Backbone
    from mdpr.model.classifier import MDPR
    from mdpr.model.weights import save_weights
    from mdpr.stages.encode import encode

    root = tmp_path_factory.mktemp("parts")
    embedded = project_root / "data" / "embedded"
    backbone = BackboneParams(
        architecture=str(embedded / "mdpr-tiny" / "mdpr-tiny.json"),
        weights=str(embedded / "mdpr-tiny" / "mdpr-tiny.safetensors"),
        device="cpu",
    )
    knowledge, features, model = (root / name for name in ("knowledge", "features", "model"))
    knowledge.mkdir()
    shutil.copy(embedded / "knowledge" / "fashion-mnist.json", knowledge / "knowledge.json")
    encode(knowledge, features, params=EncodeParams(), backbone=backbone)
    names = [item.name for item in artifacts.read_knowledge(knowledge / "knowledge.json").classes]
    encoded = artifacts.read_features(features, names)
    frozen, tune = Backbone.load(backbone), TuneParams(epochs=1)
    torch.manual_seed(0)
    model.mkdir()
    save_weights(model / "model.safetensors", MDPR(frozen, names, tune, encoded).learned_state())
    config = artifacts.ModelConfig(
        backbone=backbone,
        fingerprint=frozen.fingerprint,
        tune=tune,
        class_names=tuple(names),
        train_images=(10,) * CLASSES,
        knowledge_digest=encoded.knowledge_digest,
        selected_epoch=1,
        val_accuracy={"fused": 0.5},
    )
    artifacts.write_json(model / "config.json", config)
    return Parts(knowledge, features, model)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return connect()


@pytest.fixture
def params(project_root: Path) -> RegisterParams:
    return RegisterParams(pyfunc=str(project_root / "mlflow" / "model.py"))


@pytest.fixture
def policy(project_root: Path) -> Policy:
    return read_policy(project_root / "mlflow" / "promotion.yaml")


def retrained(parts: Parts, folder: Path) -> Parts:
    """The same model but for one number of its configuration: another digest."""
    shutil.copytree(parts.model, folder)
    config = artifacts.read_model_config(folder)
    artifacts.write_json(folder / "config.json", config.model_copy(update={"selected_epoch": 0}))
    return Parts(parts.knowledge, parts.features, folder)


def evaluated(folder: Path, accuracy: float, run: artifacts.TrackedRun | None = None) -> Path:
    """evaluation/ of a model that answers this share of each class right, the zero-shot branch 60 %."""
    if run is None:
        with open_run(TRACKING, "tune", {}, {}) as opened:
            run = opened.tracked
    label_N = np.repeat(np.arange(CLASSES), IMAGES_PER_CLASS)
    rank_N = np.tile(np.arange(IMAGES_PER_CLASS), CLASSES) / IMAGES_PER_CLASS
    shares = {"zero_shot": 0.6, "base": 0.6, "fused": accuracy}
    table = {"index": np.arange(len(label_N)), "label": label_N}
    for branch, share in shares.items():
        table[f"{branch}_top1"] = np.where(rank_N < share, label_N, (label_N + 1) % CLASSES)
    folder.mkdir()
    artifacts.write_predictions(folder, pd.DataFrame(table))
    metrics = {branch: {"all": share, "many": share, "few": share} for branch, share in shares.items()}
    artifacts.write_json(folder / "metrics.json", metrics)
    shots = ["many"] * 5 + ["few"] * 5
    pd.DataFrame({"index": range(CLASSES), "shot": shots}).to_csv(folder / "per_class.csv", index=False)
    files = sorted(folder.iterdir())
    here = releases.add_results(run, TRACKING, {"test.fused.all": accuracy}, files)
    artifacts.write_json(folder / "run.json", here.model_copy(update={"test_sha256": "t"}))
    return folder


def test_the_same_model_is_one_version(
    store: Store, parts: Parts, params: RegisterParams, policy: Policy, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8)
    first = releases.register(parts, evaluation, TRACKING, params)
    assert releases.register(parts, evaluation, TRACKING, params) == first
    assert [str(item.version) for item in store.client.search_model_versions("name = 'shoes'")] == ["1"]
    version = store.client.get_model_version_by_alias("shoes", "challenger")
    assert version.tags["mdpr.model_digest"] == parts.digest() == first.model_digest
    assert version.tags["mdpr.test.fused.all"] == "0.8000"
    assert "| fused | 80.0 | 80.0 | - | 80.0 |" in version.description
    assert "Not judged yet" in version.description
    assert releases.register(retrained(parts, tmp_path / "model"), evaluation, TRACKING, params).version == "2"


def test_the_first_model_the_worse_and_the_better(
    store: Store, parts: Parts, params: RegisterParams, policy: Policy, tmp_path: Path
) -> None:
    first = evaluated(tmp_path / "first", 0.8)
    registered = releases.register(parts, first, TRACKING, params)
    outcome = releases.promote(registered, first, policy)
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("promoted", None, "1")
    again = releases.promote(registered, first, policy)
    assert (again.decision, again.reason) == ("kept", "version 1 is the champion already")
    card = store.client.get_model_version("shoes", "1").description
    assert f"promoted: {outcome.reason}" in card
    releases.register(parts, first, TRACKING, params)
    assert store.client.get_model_version("shoes", "1").description == card  # the gate's words survive

    other = retrained(parts, tmp_path / "model")
    worse = evaluated(tmp_path / "worse", 0.7)
    outcome = releases.promote(releases.register(other, worse, TRACKING, params), worse, policy)
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("kept", "1", "1")
    assert outcome.checks[0].value < -5
    assert store.client.get_model_version("shoes", "2").tags["mdpr.gate.decision"] == "kept"

    better = evaluated(tmp_path / "better", 0.95)
    registered = releases.register(other, better, TRACKING, params)
    outcome = releases.promote(registered, better, policy)
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("promoted", "1", "2")
    aliases = store.client.get_registered_model("shoes").aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {
        "challenger": "2",
        "champion": "2",
        "previous": "1",
    }
    with pytest.raises(ArtifactError, match="is not what version 2 was registered with"):
        releases.promote(registered, worse, policy)


def test_a_model_from_elsewhere_brings_its_results(
    store: Store, parts: Parts, params: RegisterParams, policy: Policy, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8)
    foreign = artifacts.TrackedRun(run_id="f" * 32, experiment="elsewhere", test_sha256="t")
    artifacts.write_json(evaluation / "run.json", foreign)
    registered = releases.register(parts, evaluation, TRACKING, params)
    assert registered.run_id != foreign.run_id
    assert store.client.get_run(registered.run_id).data.metrics["test.fused.all"] == 0.8
    assert releases.promote(registered, evaluation, policy).decision == "promoted"
    better = evaluated(tmp_path / "better", 0.95)  # the champion's predictions are found in the stand-in run
    other = releases.register(retrained(parts, tmp_path / "model"), better, TRACKING, params)
    assert releases.promote(other, better, policy).champion_before == registered.version


def test_a_registry_without_the_version_says_what_to_do(store: Store, policy: Policy, tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8)
    registered = artifacts.Registration(
        model_name="shoes", version="3", run_id="r", model_digest="d", alias="challenger", source="s"
    )
    with pytest.raises(TrackingError, match="version 3 of shoes is not in this MLflow registry: run register"):
        releases.promote(registered, evaluation, policy)


def test_requirements_leave_the_pipeline_out() -> None:
    pins = requirements()
    assert all("==" in pin and "+" not in pin for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"torch", "open-clip-torch", "safetensors"} <= names
    assert not names & {"kfp", "dvc", "langchain", "great-expectations"}


# --- serving ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(project_root: Path) -> list[bytes]:
    table = artifacts.read_images(project_root / "data" / "embedded" / "fashion-mnist" / "test.parquet")
    return [table["image"][row]["bytes"].as_py() for row in range(3)]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, parts: Parts, project_root: Path
) -> Iterator[tuple[str, mlflow.pyfunc.PyFuncModel]]:
    """The store's address and the model behind models:/shoes@challenger."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        pyfunc = RegisterParams(pyfunc=str(project_root / "mlflow" / "model.py"))
        releases.register(parts, evaluated(folder / "evaluation", 0.8), TRACKING, pyfunc)
        yield connect().uri, mlflow.pyfunc.load_model("models:/shoes@challenger")


def test_served_answers_are_the_classifiers(served: tuple, parts: Parts, images: list[bytes]) -> None:
    from mdpr.data.images import decode_image
    from mdpr.inference import Classifier

    expected = Classifier.load(parts.model, parts.features).predict([decode_image(item, "x") for item in images])
    frame = pd.DataFrame({"image": [base64.b64encode(item).decode() for item in images]})
    for asked in (frame, pd.DataFrame({"image": images})):  # text or bytes
        answers = served[1].predict(asked, params={"top_k": 5, "explain": True}).to_dict("records")
        for answer, prediction in zip(answers, expected, strict=True):
            assert answer["error"] is None
            assert answer["class"] == prediction.class_name
            assert answer["probability"] == pytest.approx(prediction.probability, abs=1e-6)
            assert [item["class"] for item in answer["top_k"]] == [name for name, _ in prediction.top_k]
            assert {key: item["weight"] for key, item in answer["routing"].items()} == pytest.approx(
                prediction.routing, abs=1e-6
            )
            assert all(item["sentence"] for item in answer["routing"].values())
    assert "routing" not in served[1].predict(frame).columns


def test_a_bad_image_spoils_its_row_alone(served: tuple, images: list[bytes]) -> None:
    good = base64.b64encode(images[0]).decode()
    wrapped = "\n".join(good[start : start + 76] for start in range(0, len(good), 76))
    rows = [
        good,
        "no base64!",
        base64.b64encode(b"GIF89a").decode(),
        None,
        good[: len(good) // 2],
        wrapped,
        "",
        "é",
    ]
    answers = served[1].predict(pd.DataFrame({"image": rows}), params={"top_k": 2})
    assert [error is None for error in answers["error"]] == [row in (0, 5) for row in range(len(rows))]
    assert answers["class"][0] == answers["class"][5]
    assert [len(item) for item in answers["top_k"] if item] == [2, 2]


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (pd.DataFrame({"picture": ["x"]}), {}, "image"),
        (pd.DataFrame({"image": ["x"] * 257}), {}, "257 images in one request: send at most 256"),
        (pd.DataFrame({"image": ["x"]}), {"top_k": 0}, "top_k = 0 must lie between 1 and 100"),
    ],
)
def test_a_malformed_request_is_refused(served: tuple, frame: pd.DataFrame, options: dict, message: str) -> None:
    with pytest.raises(mlflow.MlflowException, match=message):
        served[1].predict(frame, params=options)


def test_the_model_loads_without_the_pipeline(served: tuple, images: list[bytes], tmp_path: Path) -> None:
    """In a process that has neither this project on its path nor anything that serving does not require."""
    (tmp_path / "image.png").write_bytes(images[0])
    program = f"""
import sys
sys.path[:] = [path for path in sys.path if not path.endswith("/src")]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
for name in ("kfp", "dvc", "langchain", "great_expectations", "altair", "hypothesis"):
    sys.modules[name] = None
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/shoes@challenger")
answer = model.predict(pandas.DataFrame({{"image": [open("image.png", "rb").read()]}}))
import mdpr
assert "{Path(__file__).parents[2]}" not in mdpr.__file__, mdpr.__file__
print(answer["class"][0])
"""
    environment = os.environ | {"MLFLOW_TRACKING_URI": served[0]}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == served[1].predict(pd.DataFrame({"image": images[:1]}))["class"][0]


def test_rest_answers_are_json_without_nan(served: tuple, images: list[bytes], tmp_path: Path) -> None:
    command = ["models", "serve", "-m", "models:/shoes@challenger", "--env-manager", "local", "-w", "1"]
    with running(command, served[0], tmp_path, health="/ping") as address:
        rows = [[base64.b64encode(images[0]).decode()], ["no image"]]
        body = {
            "dataframe_split": {"columns": ["image"], "data": rows},
            "params": {"top_k": 1, "explain": True},
        }
        answer = requests.post(f"{address}/invocations", json=body, timeout=30)
        good, bad = json.loads(answer.text, parse_constant=pytest.fail)["predictions"]  # NaN is no JSON
        assert good["error"] is None
        assert sum(item["weight"] for item in good["routing"].values()) == pytest.approx(1, abs=1e-5)
        assert bad["error"].startswith("the image is not base64")
        assert (bad["class"], bad["probability"], bad["top_k"]) == (None, None, None)
        refused = requests.post(f"{address}/invocations", json=body | {"params": {"top_k": 0}}, timeout=30)
        assert refused.status_code == 400
        assert "top_k = 0 must lie between" in refused.text
        assert requests.post(f"{address}/invocations", json=body, timeout=30).ok  # it is still up


# --- a server -----------------------------------------------------------------------------------------------


def test_against_a_server_that_goes_away_while_training(
    parts: Parts, params: RegisterParams, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    command = ["server", "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "store")]
    where = f"sqlite:///{tmp_path / 'server.db'}"
    with running(command, where, tmp_path, health="/health", port=port) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        context = open_run(TRACKING, "tune", {"tune.epochs": 3}, {})
        run = context.__enter__()
        run.log_epoch({"loss": 3.0}, epoch=1)
    run.log_epoch({"loss": 2.0}, epoch=2)  # nobody is there; training goes on
    with running(command, where, tmp_path, health="/health", port=port):
        run.log_epoch({"loss": 1.0}, epoch=3)
        context.__exit__(None, None, None)
        client = connect().client
        history = client.get_metric_history(run.run_id, "loss")
        assert sorted((item.step, item.value) for item in history) == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert client.get_run(run.run_id).info.status == "FINISHED"
        evaluation = evaluated(tmp_path / "evaluation", 0.8, run.tracked)
        registered = releases.register(parts, evaluation, TRACKING, params)
        assert registered == releases.register(parts, evaluation, TRACKING, params)
        assert releases.promote(registered, evaluation, policy).decision == "promoted"
        better = evaluated(tmp_path / "better", 0.95)
        other = releases.register(retrained(parts, tmp_path / "model"), better, TRACKING, params)
        assert releases.promote(other, better, policy).champion_before == "1"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], store_uri: str, folder: Path, health: str, port: int | None = None) -> Iterator[str]:
    """`mlflow COMMAND` on loopback; yields its address once it is up, ends it afterwards."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # it starts uvicorn by name
        "MLFLOW_TRACKING_URI": store_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + 90
        while True:
            try:
                requests.get(address + health, timeout=2).raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.3)
        yield address
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
