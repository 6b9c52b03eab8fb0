"""The cost of serving, the gate and the registry: REST latency and throughput, the batch path, cold start, promotions.

    python -m benchmarks.serving [--requests 200] [--images 512] [--json]

A model with random learned weights is registered in a store of its own (speed does not depend on the weights) and
served by `mdpr serve`, one worker, on loopback. rest_p50_ms and rest_p99_ms are one client's requests of one image;
rest_images_per_s_c32 is 32 clients at once. batch_vs_bare compares images per second of the served model in process
(decoded from bytes, a batch per call) with the bare classifier on the same images, decoded beforehand alike. gate_s is
the gate on 10,000 images, 1,000 classes and 2,000 bootstrap samples. champions_after_20 counts the processes, of 20
that promote at the same moment through an MLflow server, that learn that they won.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import requests
import yaml

from benchmarks.report import device_name, emit, make_parser
from benchmarks.servers import running
from benchmarks.serving_crowd import count_winners
from mdpr.artifacts import read_run
from mdpr.mlops.gate import compare, read_policy
from mdpr.mlops.promotions import move_champion
from mdpr.mlops.registry import Registry
from mdpr.mlops.releases import Parts, log_served_model
from mdpr.mlops.store import connect
from mdpr.model.inference import Classifier
from mdpr.params import Params, TrackingParams, load_params
from mdpr.progress import track
from mdpr.stages.stage import load_stage, run_stage

PACKAGES = ("torch", "mlflow", "open_clip_torch")
CLIENTS = (1, 8, 32)
PROMOTERS = 20
STAGES = ("prepare", "probe", "describe", "encode", "tune")
SMALL = ("prepare.max_images_per_class=40", "prepare.imbalance_ratio=4", "prepare.val_images_per_class=5")
START_TIMEOUT_S = 180
REQUEST_TIMEOUT_S = 60


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=200, help="requests at each number of clients")
    parser.add_argument("--images", type=int, default=512, help="images of the batch comparison")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings to start from")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        tracking = TrackingParams(experiment="serving", model_name="serving", outbox=str(folder / "outbox"))
        parts, images = registered_model(arguments.params, folder, tracking)
        rows, figures = measure_rest(folder, tracking, images, arguments.requests)
        figures["batch_vs_bare"] = measure_batch(parts, images, arguments.images, rows)
        figures["gate_s"] = measure_gate()
        figures["champions_after_20"] = float(count_winners(folder, PROMOTERS))
    emit("serving", device_name(), PACKAGES, figures, rows, arguments.json)


# --- the model ----------------------------------------------------------------------------------------------


def tuned_model(params_path: Path, folder: Path, tracking: TrackingParams) -> tuple[dict[str, Path], Params]:
    """The flow on a small cut with one epoch: the outputs below `folder`, and the settings."""
    overrides = [*SMALL, "tune.epochs=1"]
    overrides += [f"tracking.{key}={value}" for key, value in tracking.model_dump().items()]
    params = load_params(params_path, overrides)
    ports = ("prepared", "probe", "knowledge", "features", "model")
    paths = {port: folder / port for port in ports} | {"checkpoint": folder / "checkpoint"}
    for name in track(STAGES, "preparing a model"):
        run_stage(load_stage(name), paths, params)
    return paths, params


def registered_model(params_path: Path, folder: Path, tracking: TrackingParams) -> tuple[Parts, list[bytes]]:
    """The flow on a small cut with one epoch, registered as champion; and test images, encoded."""
    paths, params = tuned_model(params_path, folder, tracking)
    parts = Parts(paths["knowledge"], paths["features"], paths["model"])
    store, run = connect(), read_run(paths["model"])
    model_id = log_served_model(store, run, parts, Path(params.register.pyfunc))
    registry = Registry(store, tracking.model_name)
    version = registry.create(model_id, parts.digest(), {})
    move_champion(registry, version.number, expected=None)
    table = pd.read_parquet(paths["prepared"] / "test.parquet")
    return parts, [item["bytes"] for item in table["image"]]


# --- over HTTP ----------------------------------------------------------------------------------------------


def measure_rest(
    folder: Path, tracking: TrackingParams, images: Sequence[bytes], count: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Latency and throughput of single-image requests by number of clients; and the cold start."""
    (folder / "params.yaml").write_text(yaml.safe_dump({"tracking": tracking.model_dump()}), encoding="utf-8")
    bodies = [request_body(images[index % len(images)]) for index in range(count)]
    rows: list[dict[str, Any]] = []
    command = ["-m", "mdpr", "serve", "--params", str(folder / "params.yaml")]
    started_s = time.perf_counter()
    with running(command, "/ping", folder) as (address, _):
        post(address, bodies[0])
        cold_start_s = time.perf_counter() - started_s
        for _ in range(20):
            post(address, bodies[0])
        for clients in track(CLIENTS, "REST"):
            began_s = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                seconds = list(pool.map(lambda body: post(address, body), bodies))
            elapsed_s = time.perf_counter() - began_s
            rows.append({"what": f"REST, {clients} clients", **summary(seconds), "images_per_s": count / elapsed_s})
    figures = {
        "rest_p50_ms": rows[0]["p50_ms"],
        "rest_p99_ms": rows[0]["p99_ms"],
        "rest_images_per_s_c32": rows[-1]["images_per_s"],
        "cold_start_s": cold_start_s,
    }
    return rows, figures


def request_body(image: bytes) -> dict[str, Any]:
    return {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}}


def post(address: str, body: dict[str, Any]) -> float:
    """Seconds until the answer, which must be one."""
    started_s = time.perf_counter()
    answer = requests.post(f"{address}/invocations", json=body, timeout=REQUEST_TIMEOUT_S)
    seconds = time.perf_counter() - started_s
    assert answer.ok, answer.text
    assert answer.json()["predictions"][0]["error"] is None, answer.text
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return {"p50_ms": 1000 * float(p50), "p99_ms": 1000 * float(p99)}


# --- in process ---------------------------------------------------------------------------------------------


def measure_batch(parts: Parts, images: Sequence[bytes], count: int, rows: list[dict[str, Any]]) -> float:
    """Images per second of the served model over those of the bare classifier, medians of three turns each."""
    import mlflow
    from PIL import Image

    served = mlflow.pyfunc.load_model("models:/serving@champion")
    classifier = Classifier.load(parts.model, parts.features)
    data = [images[index % len(images)] for index in range(count)]
    frames = [pd.DataFrame({"image": data[start : start + 64]}) for start in range(0, count, 64)]

    def bare() -> None:
        for start in range(0, count, 64):
            classifier.predict([Image.open(io.BytesIO(item)) for item in data[start : start + 64]])

    def by_pyfunc() -> None:
        for frame in frames:
            served.predict(frame)

    calls: dict[str, Callable[[], None]] = {"bare classifier": bare, "served model, in process": by_pyfunc}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(4):  # the first warms up
        for name, call in calls.items():
            started_s = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - started_s)
    per_s = {name: count / statistics.median(values) for name, values in seconds.items()}
    rows += [
        {"what": name, "p50_ms": 1000 / value, "p99_ms": float("nan"), "images_per_s": value}
        for name, value in per_s.items()
    ]
    return per_s["served model, in process"] / per_s["bare classifier"]


def measure_gate() -> float:
    """Median seconds of five comparisons."""
    rng, policy = np.random.default_rng(0), read_policy(Path("mlflow/promotion.yaml"))
    label_N = np.repeat(np.arange(1000), 10)
    right_N, other_N = rng.random(10_000) < 0.8, rng.random(10_000) < 0.8
    seconds = []
    for _ in range(5):
        started_s = time.perf_counter()
        compare(right_N, other_N, label_N, {"all": range(1000)}, policy)
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
