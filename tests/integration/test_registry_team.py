"""A team's server: MLflow over PostgreSQL and S3, started with the flags of mlflow/compose.yaml.

Only one test logs in: the server checks a password with a hash that is slow on purpose, at every request.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.serving_crowd import promote_when_told

from mdpr import artifacts
from mdpr.errors import TrackingError
from mdpr.mlops import promotions, releases
from mdpr.mlops.gate import read_policy
from mdpr.mlops.promotions import move_champion, open_log
from mdpr.mlops.registry import CHAMPION, Registry
from mdpr.mlops.releases import Parts
from mdpr.mlops.store import Store, connect
from mdpr.params import RegisterParams, TrackingParams

pytestmark = pytest.mark.integration
TRACKING = TrackingParams(experiment="team", model_name="team", system_metrics=False)
USER, PASSWORD = "admin", "a-long-password"
LOGIN_FLAG = "--app-name=basic-auth"
PROMOTERS = 20


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., Any],
    postgres: str,
    s3: str,
    project_root: Path,
) -> Iterator[Any]:
    flags = [flag for flag in compose_flags(project_root) if flag != LOGIN_FLAG]
    with start_server(["-m", *flags], "/health", **server_environment(postgres, s3)) as started:
        yield started


def compose_flags(project_root: Path) -> list[str]:
    """The server's command in compose.yaml, with the addresses of this test."""
    compose = yaml.safe_load((project_root / "mlflow" / "compose.yaml").read_text("utf-8"))
    flags: list[str] = compose["services"]["mlflow"]["command"]
    changed = {
        "--host": "127.0.0.1",
        "--port": "{port}",
        "--artifacts-destination": "s3://mlflow",
        "--allowed-hosts": "localhost:*,127.0.0.1:*",
    }
    assert set(changed) <= {flag.partition("=")[0] for flag in flags}
    kept = [flag for flag in flags if flag.partition("=")[0] not in changed]
    return [*kept, *(f"{flag}={value}" for flag, value in changed.items())]


def server_environment(postgres: str, s3: str) -> dict[str, str]:
    return {
        "MLFLOW_BACKEND_STORE_URI": postgres,
        "MLFLOW_S3_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def store(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    for name, value in client_environment(server).items():
        monkeypatch.setenv(name, value)
    return connect()


def client_environment(server: Any) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": server.address,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }


def make_versions(store: Store, name: str, count: int) -> list[str]:
    """Versions without a model behind them: the aliases do not look into it."""
    client = store.client
    found = client.get_experiment_by_name(name)
    experiment_id = found.experiment_id if found else client.create_experiment(name)
    run_id = client.create_run(experiment_id).info.run_id
    models = [client.create_logged_model(experiment_id, "model", run_id) for _ in range(count)]
    registry = Registry(store, name)
    return [registry.create(model.model_id, f"digest-{n}", {}).number for n, model in enumerate(models)]


# --- the flow, and who may come in --------------------------------------------------------------------------


def test_register_and_promote_over_postgresql_and_s3(
    store: Store,
    s3: str,
    parts: Parts,
    evaluated: Callable[..., Path],
    register_params: RegisterParams,
    project_root: Path,
    tmp_path: Path,
) -> None:
    boto3 = pytest.importorskip("boto3")
    policy = read_policy(project_root / "mlflow" / "promotion.yaml")
    first = evaluated(tmp_path / "first", 0.8, TRACKING)
    registered = releases.register(parts, first, TRACKING, register_params)
    assert registered == releases.register(parts, first, TRACKING, register_params)
    assert promotions.promote(registered, first, first, policy, first / "checkpoint").decision == "promoted"
    login = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "any")
    client = boto3.client("s3", endpoint_url=s3, **login)
    keys = {item["Key"].rpartition("/")[2] for item in client.list_objects_v2(Bucket="mlflow")["Contents"]}
    assert {"predictions.parquet", "promotion.json", "model.safetensors", "MLmodel"} <= keys


def test_nobody_comes_in_without_the_password(
    start_server: Callable[..., Any],
    postgres: str,
    s3: str,
    project_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = compose_flags(project_root)
    assert LOGIN_FLAG in flags
    compose = yaml.safe_load((project_root / "mlflow" / "compose.yaml").read_text("utf-8"))
    lines = str(compose["configs"]["auth"]["content"]).splitlines()
    kept = [line for line in lines if not line.startswith("database_uri")]
    (tmp_path / "auth.ini").write_text("\n".join([*kept, f"database_uri = sqlite:///{tmp_path / 'auth.db'}"]))
    environment = server_environment(postgres, s3) | {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test alone",
    }
    with start_server(["-m", *flags], "/health", **environment) as guarded:
        for name, value in client_environment(guarded).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        assert Registry(connect(), "nobody").get_by_alias(CHAMPION) is None
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
        with pytest.raises(TrackingError, match=r"refused \(401\): set MLFLOW_TRACKING_USERNAME") as caught:
            Registry(connect(), "nobody").get_by_alias(CHAMPION)
        assert "hunter2" not in str(caught.value)


# --- everybody at once --------------------------------------------------------------------------------------


def test_of_twenty_promoting_processes_one_wins_and_the_others_are_told(store: Store, server: Any) -> None:
    numbers = make_versions(store, "crowded", PROMOTERS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "mdpr.mlops.registry"])  # one import for all
    start, answers = context.Barrier(PROMOTERS), context.Queue()
    arguments = [(client_environment(server), "crowded", number, start, answers) for number in numbers]
    processes = [context.Process(target=promote_when_told, args=item) for item in arguments]
    for process in processes:
        process.start()
    told = dict(answers.get(timeout=600) for _ in processes)
    for process in processes:
        process.join(timeout=120)
    winners = [number for number, error in told.items() if error is None]
    champion = Registry(store, "crowded").get_by_alias(CHAMPION)
    assert champion is not None
    assert winners == [champion.number]
    losers = {number: error for number, error in told.items() if error is not None}
    assert len(losers) == PROMOTERS - 1
    reason = f"is version {champion.number}, not none: someone else promoted"
    assert [text for text in losers.values() if reason not in text] == []


def test_a_promoter_that_died_halfway_is_finished_by_the_next(store: Store) -> None:
    first, second = make_versions(store, "halfway", 2)
    registry = Registry(store, "halfway")
    log = open_log(registry)
    assert log.reserve(None, first, None) is not None  # and here its process ends
    assert log.reserve(None, second, None) is None
    assert registry.get_by_alias(CHAMPION) is None
    with pytest.raises(TrackingError, match="the champion of halfway is version 1, not none"):
        move_champion(registry, second, expected=None)
    champion = registry.get_by_alias(CHAMPION)
    assert champion is not None
    assert champion.number == first
    move_champion(registry, second, expected=first)
    registry.set_alias(CHAMPION, first)  # by hand, in MLflow's user interface: that counts
    move_champion(registry, second, expected=first)
    assert registry.aliases() == {"champion": second, "previous": first}


def test_registering_the_same_digest_at_once_gives_one_version(store: Store) -> None:
    client = store.client
    experiment_id = client.create_experiment("twins")
    run_id = client.create_run(experiment_id).info.run_id
    model_ids = [client.create_logged_model(experiment_id, "model", run_id).model_id for _ in range(6)]
    start = threading.Barrier(len(model_ids))
    numbers: list[str] = []

    def register(model_id: str) -> None:
        start.wait()
        numbers.append(Registry(store, "twins").create(model_id, "digest", {}).number)

    threads = [threading.Thread(target=register, args=(model_id,)) for model_id in model_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    left = {version.number for version in Registry(store, "twins").versions()}
    assert len(left) == 1
    assert set(numbers) == left


# --- the server dies ----------------------------------------------------------------------------------------

TRAINER = """
import sys
from pathlib import Path
from mdpr.params import TrackingParams
from mdpr.mlops.runs import open_run

tracking = TrackingParams(experiment="killed", outbox="outbox", system_metrics=False)
with open_run(tracking, "tune", {"tune.epochs": 9}, {}) as run:
    Path("run_id").write_text(run.run_id)
    for epoch, line in enumerate(sys.stdin):  # an epoch a line
        run.log_epoch({"loss": 10.0 - epoch}, epoch)
        print(epoch, flush=True)
"""


def test_the_server_dies_during_training_and_register(
    store: Store,
    server: Any,
    parts: Parts,
    retrained: Callable[[Path], Parts],
    evaluated: Callable[..., Path],
    register_params: RegisterParams,
    tmp_path: Path,
) -> None:
    """The trainer goes on and is killed itself; nothing is lost, nothing is there twice, the registry is whole."""
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    with ExitStack() as stack:
        trainer = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", TRAINER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, **client_environment(server), **quick},
            )
        )
        stack.callback(trainer.kill)

        def train(epoch: int) -> None:
            assert trainer.stdin is not None
            assert trainer.stdout is not None
            trainer.stdin.write("\n")
            trainer.stdin.flush()
            assert trainer.stdout.readline().strip() == str(epoch)

        train(0)
        evaluation = evaluated(tmp_path / "evaluation", 0.8, TRACKING)
        other = retrained(tmp_path / "model")
        before = Registry(store, "team").versions()
        experiment_id = store.client.get_experiment_by_name("team").experiment_id
        models = len(store.client.search_logged_models([experiment_id]))
        failures: list[BaseException] = []

        def register() -> None:
            try:
                releases.register(other, evaluation, TRACKING, register_params)
            except TrackingError as error:
                failures.append(error)

        registering = threading.Thread(target=register)
        registering.start()
        while len(store.client.search_logged_models([experiment_id])) == models:
            time.sleep(0.02)  # the model is announced; its files are about to be uploaded
        server.kill(signal.SIGKILL)
        registering.join(timeout=120)
        assert len(failures) == 1
        assert "\n" not in str(failures[0])
        train(1)
        train(2)
        trainer.kill()  # with two epochs that only the outbox has
    server.start()

    assert Registry(store, "team").versions() == before
    registered = releases.register(other, evaluation, TRACKING, register_params)
    assert registered == releases.register(other, evaluation, TRACKING, register_params)
    assert len(Registry(store, "team").versions()) == len(before) + 1

    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"tracking": {"outbox": "outbox"}}))
    publish = [sys.executable, "-m", "mdpr", "tracking", "publish"]
    for published in ("items published: 1", "items published: 0"):  # two epochs and the end; then nothing
        done = subprocess.run(
            publish,
            cwd=tmp_path,
            env={**os.environ, **client_environment(server)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert published in done.stdout, done.stderr
    run_id = (tmp_path / "run_id").read_text()
    history = store.client.get_metric_history(run_id, "train/loss")
    assert sorted((item.step, item.value) for item in history) == [(0, 10.0), (1, 9.0), (2, 8.0)]
    assert store.client.get_run(run_id).info.status == "KILLED"
    assert not (tmp_path / "outbox").exists()
    assert json.loads((tmp_path / "evaluation" / "run.json").read_text())["run_id"] == registered.run_id
    assert artifacts.read_run(tmp_path / "evaluation").run_id == registered.run_id
