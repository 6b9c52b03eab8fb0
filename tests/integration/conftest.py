"""Real parts, each started once: MLflow, PostgreSQL, S3, Chromium with axe-core; and a real, untrained model."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import requests

from mdpr import artifacts
from mdpr.mlops.releases import Parts
from mdpr.mlops.runs import add_results, open_run, result_metrics
from mdpr.mlops.store import Store, connect
from mdpr.params import BackboneParams, EncodeParams, RegisterParams, TrackingParams, TuneParams

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

START_TIMEOUT_S = 120
CLASSES, IMAGES_PER_CLASS = 10, 30  # of the models that `evaluated` makes up
AXE_VERSION = "4.14.1"
POSTGRES_PROGRAMS = Path("/usr/lib/postgresql/15/bin")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Server:
    """A process with an HTTP address; it may be killed and started again at the same place."""

    command: Sequence[str]
    health: str
    folder: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / f"server-{self.port}.log"

    def start(self) -> None:
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by name
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                env={**os.environ, **quiet, **self.environment, "PATH": path},
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                requests.get(self.address + self.health, timeout=2).raise_for_status()
                return
            except requests.RequestException:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline_s, self.log.read_text()
                time.sleep(0.2)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, how)
            self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def copy_project(project_root: Path) -> Callable[[Path], None]:
    """copy_project(folder): what Git would hand a new user, tracked and new files, without a repository yet."""

    def copy(folder: Path) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=project_root,
            capture_output=True,
            check=True,
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (project_root / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(project_root / name, folder / name)

    return copy


StartServer = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> StartServer:
    """start_server([arguments of python], health path) -> a context with the server, up until the context ends."""

    @contextmanager
    def started(command: Sequence[str], health: str, port: int | None = None, **environment: str) -> Iterator[Server]:
        port = port or free_port()
        arguments = [item.replace("{port}", str(port)) for item in command]
        server = Server(arguments, health, tmp_path_factory.mktemp("server"), port, environment)
        server.start()
        try:
            yield server
        finally:
            server.kill(signal.SIGTERM)

    return started


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty database on a real PostgreSQL 15, on loopback, in a temporary folder."""
    pg_ctl, initdb = POSTGRES_PROGRAMS / "pg_ctl", POSTGRES_PROGRAMS / "initdb"
    if not pg_ctl.exists():
        pytest.skip(f"PostgreSQL 15 is not installed ({pg_ctl}): apt-get install postgresql-15")
    pytest.importorskip("psycopg2", reason="the driver psycopg2 is not installed: pip install psycopg2-binary")
    user: dict[str, str | int] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip("root cannot run PostgreSQL and there is no user postgres")
        user = {"user": "postgres", "group": "postgres"}
        if subprocess.run(["sh", "-c", ": > /dev/null"], capture_output=True, **user).returncode:  # type: ignore[call-overload]
            pytest.skip("the user postgres may not write to /dev/null, which initdb does: chmod 666 /dev/null")
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="mdpr-postgres-"))
    if user:
        shutil.chown(folder, "postgres", "postgres")

    def run(*command: str | Path) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, **user)  # type: ignore[call-overload]
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    data = folder / "data"
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        run(initdb, "--pgdata", data, "--username", "mlflow", "--auth", "trust", "--no-sync")
        run(pg_ctl, "start", "--pgdata", data, "--wait", "--log", folder / "log", "--options", options)
        yield f"postgresql+psycopg2://mlflow:secret@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            run(pg_ctl, "stop", "--pgdata", data, "--mode", "immediate")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 store (moto's server) with the bucket `mlflow`."""
    boto3 = pytest.importorskip("boto3")
    server_class = pytest.importorskip("moto.server").ThreadedMotoServer
    server = server_class(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **login).create_bucket(Bucket="mlflow")
    yield address
    server.stop()


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A real, empty MLflow store in `tmp_path`, which is the working folder too."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return connect()


@pytest.fixture(scope="session")
def register_params(project_root: Path) -> RegisterParams:
    return RegisterParams(pyfunc=str(project_root / "mlflow" / "model.py"))


@pytest.fixture(scope="session")
def parts(untrained: Callable[..., Parts], tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """knowledge/, features/ and model/ as the stages write them; the prompts and the router are not trained."""
    return untrained(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def untrained(project_root: Path) -> Callable[..., Parts]:
    """untrained(folder, c0=name, ...) -> the parts of a model, some of its classes renamed."""
    return lambda root, **renamed: _untrained(root, project_root, {int(key[1:]): name for key, name in renamed.items()})


def _untrained(root: Path, project_root: Path, renamed: dict[int, str]) -> Parts:
    import torch

    from mdpr.model.backbone import Backbone, save_weights
    from mdpr.model.classifier import MDPR
    from mdpr.stages.encode import encode

    embedded = project_root / "data" / "embedded"
    backbone = BackboneParams(
        architecture=str(embedded / "mdpr-tiny" / "mdpr-tiny.json"),
        weights=str(embedded / "mdpr-tiny" / "mdpr-tiny.safetensors"),
        device="cpu",
    )
    knowledge, features, model = (root / name for name in ("knowledge", "features", "model"))
    knowledge.mkdir()
    content = artifacts.read_json(embedded / "knowledge" / "fashion-mnist.json")
    for index, name in renamed.items():
        content["classes"][index]["name"] = name
    artifacts.write_json(knowledge / "knowledge.json", content)
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
        train_images=(10,) * len(names),
        knowledge_digest=encoded.knowledge_digest,
        background="white",
        selected_epoch=1,
        tau=0.0,
        val_accuracy={"fused": 0.5},
    )
    artifacts.write_json(model / "config.json", config)
    return Parts(knowledge, features, model)


@pytest.fixture(scope="session")
def retrained(parts: Parts) -> Callable[[Path], Parts]:
    """The same model but for one number of its configuration, in another folder: another digest."""

    def copy(folder: Path) -> Parts:
        shutil.copytree(parts.model, folder)
        config = artifacts.read_model_config(folder)
        artifacts.write_json(folder / "config.json", config.model_copy(update={"selected_epoch": 0}))
        return Parts(parts.knowledge, parts.features, folder)

    return copy


@pytest.fixture(scope="session")
def evaluated() -> Callable[..., Path]:
    """evaluated(folder, accuracy) -> evaluation/ of a model that answers this share of each class right.

    The zero-shot branch is right about 60 %. Where no `run` is given, a run is opened for it as `tune` does.
    `image_N` are the digests of the test images, by default their rows; `seen_N` those of the images that the model was
    trained on, by default none.
    """

    def evaluate(
        folder: Path,
        accuracy: float,
        tracking: TrackingParams,
        run: artifacts.TrackedRun | None = None,
        name: str = "c{}",
        image_N: np.ndarray | None = None,
        seen_N: np.ndarray | None = None,
    ) -> Path:
        if run is None:
            with open_run(tracking, "tune", {}, {}) as opened:
                run = opened.tracked
        label_N = np.repeat(np.arange(CLASSES), IMAGES_PER_CLASS)
        rank_N = np.tile(np.arange(IMAGES_PER_CLASS), CLASSES) / IMAGES_PER_CLASS
        shares = {"zero_shot": 0.6, "base": 0.6, "fused": accuracy}
        test_sha256 = "t" if image_N is None else str(image_N.sum())
        image_N = np.arange(len(label_N)) if image_N is None else image_N
        table = {"index": np.arange(len(label_N)), "image": image_N, "label": label_N}
        for branch, share in shares.items():
            table[f"{branch}_top1"] = np.where(rank_N < share, label_N, (label_N + 1) % CLASSES)
            table[f"{branch}_probability"] = np.full(len(label_N), share - 0.05, np.float32)
        folder.mkdir()
        artifacts.write_predictions(folder, pd.DataFrame(table))
        artifacts.write_seen(folder, train_N=image_N[:0] if seen_N is None else seen_N, val_N=image_N[:0])
        metrics = {name: {"all": share, "many": share, "few": share, "ece": 0.05} for name, share in shares.items()}
        artifacts.write_json(folder / "metrics.json", metrics)
        shots = ["many"] * 5 + ["few"] * 5
        per_class = pd.DataFrame(
            {"index": range(CLASSES), "class": [name.format(n) for n in range(CLASSES)], "shot": shots}
        )
        per_class = per_class.assign(train_images=10, test_images=IMAGES_PER_CLASS, zero_shot_accuracy=0.6)
        per_class.assign(base_accuracy=0.6).to_csv(folder / "per_class.csv", index=False)
        files = {f"evaluation/{path.name}": path for path in folder.iterdir()}
        add_results(run, tracking, result_metrics(metrics), files)
        artifacts.write_json(folder / "run.json", run.model_copy(update={"test_sha256": test_sha256}))
        return folder

    return evaluate


@pytest.fixture(scope="module")  # while it is open, its event loop runs: no later module could call asyncio.run
def browser() -> Iterator[Browser]:
    """The system's Chromium (`chromium`, or the path in PLAYWRIGHT_CHROMIUM_EXECUTABLE_PATH) or Playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = os.environ.get("PLAYWRIGHT_CHROMIUM_EXECUTABLE_PATH") or shutil.which("chromium")
    with playwright.sync_playwright() as driver:
        if path is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium: install the system's, or run `playwright install chromium`")
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched once from npm into a cache outside the repository."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mdpr" / f"axe-core-{AXE_VERSION}.tgz"
    if not cache.is_file():
        if shutil.which("npm") is None:
            pytest.skip("axe-core cannot be fetched: npm is not installed")
        cache.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"axe-core@{AXE_VERSION}", "--pack-destination", str(cache.parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"axe-core cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(cache) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture
def axe_faults(page: Page, axe: str) -> Callable[[], list[tuple[str, str]]]:
    """axe_faults() -> what axe-core finds on `page` as it stands: the rule and the first element that breaks it."""

    def find() -> list[tuple[str, str]]:
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [(item["id"], item["nodes"][0]["html"][:200]) for item in found]

    return find


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page without a network whose console must stay silent."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True, reduced_motion="reduce")
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: said.append(f"error: {error}"))
    opened.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    opened.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
    yield opened
    context.close()
    assert said == []
