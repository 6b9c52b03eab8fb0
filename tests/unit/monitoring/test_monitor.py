"""`mdpr monitor`: exit codes, a result that is on the disk before MLflow is spoken to, and its run in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.unit.monitoring.conftest import EVEN_C, SHIFTED_C, SOURCE, MakeAnswers, write_per_class

from mdpr.artifacts.prediction_log import REFERENCE_FILE, Answers, LogSource, write_prediction_log
from mdpr.commands.monitor import fetch_reference, monitor, publish_monitoring
from mdpr.errors import ArtifactError, ConfigError, MdprError, TrackingError
from mdpr.kubeflow.tasks import run_monitor
from mdpr.mlops.registry import CHAMPION, Registry
from mdpr.mlops.runs import add_results, open_run
from mdpr.mlops.store import Store
from mdpr.monitoring.result import Monitoring
from mdpr.monitoring.sample import Reference, read_reference, read_sample
from mdpr.monitoring.shift import Thresholds, analyse
from mdpr.params import TrackingParams, dump_yaml

WriteLog = Callable[..., None]


@pytest.fixture
def run(
    reference: Reference,
    answers: MakeAnswers,
    write_log: WriteLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """run(*options) -> the result of the command; the logs `same` and `shifted` are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    write_prediction_log(tmp_path / REFERENCE_FILE, SOURCE, reference.answers)
    write_log(tmp_path / "same" / "a.parquet", answers(EVEN_C, 1000, seed=1))
    write_log(tmp_path / "shifted" / "a.parquet", answers(SHIFTED_C, 1000, seed=2))

    def invoke(log: str, *options: str) -> Result:
        given = ["--log", log, "--reference", REFERENCE_FILE, "--output", "out", "--resamplings", "20", *options]
        return CliRunner().invoke(monitor, given)

    return invoke


def test_exit_codes_and_files(run: Callable[..., Result]) -> None:
    kept = run("same", "--no-mlflow")
    assert (kept.exit_code, Path("out/monitor.html").is_file()) == (0, True), kept.output
    advised = run("shifted", "--no-mlflow", "--json")  # replaces its own files
    assert advised.exit_code == 1
    content = json.loads(advised.output[advised.output.index("{") :])
    assert content == json.loads(Path("out/monitor.json").read_text())
    assert content["advice"] == "retrain"
    assert run("shifted", "--no-mlflow", "--max-label-shift", "1", "--max-drop-points", "100").exit_code == 0


@pytest.mark.parametrize(
    ("log", "options"),
    [("nowhere", []), ("same", ["--reference", "nowhere"]), ("same", ["--reference", "runs:/0123"])],
)
def test_bad_input_is_an_error_of_ours(run: Callable[..., Result], log: str, options: list[str]) -> None:
    result = run(log, "--no-mlflow", *options)
    assert isinstance(result.exception, MdprError)
    assert result.exception.exit_code == 2
    assert not Path("out").exists()


def test_somebodys_own_file_is_not_replaced(run: Callable[..., Result]) -> None:
    Path("out").mkdir()
    Path("out/monitor.json").write_text("mine")
    assert isinstance(run("same", "--no-mlflow").exception, ConfigError)
    assert Path("out/monitor.json").read_text() == "mine"


def test_a_store_that_is_not_there_costs_a_warning(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'nowhere' / 'mlflow.db'}")
    result = run("shifted")
    assert result.exit_code == 1, result.output
    assert Path("out/monitor.html").is_file()


# --- MLflow -------------------------------------------------------------------------------------------------

SHOES = LogSource(model="shoes", version="1", model_digest="d", class_names=("boot", "bag"))


def made_up_answers(images: int, seed: int) -> Answers:
    generator = np.random.default_rng(seed)
    label_N = generator.integers(0, 2, images)
    right_N = generator.uniform(0.6, 0.99, images)
    class_NK = np.stack([label_N, 1 - label_N], axis=1).astype(np.int32)
    return Answers(class_NK, np.log(np.stack([right_N, 1 - right_N], axis=1)).astype(np.float32), None, label_N)


@pytest.fixture
def run_id(store: Store, tracking: TrackingParams, tmp_path: Path) -> str:
    """A run that evaluate has added its reference to, the run of the champion."""
    write_prediction_log(tmp_path / REFERENCE_FILE, SHOES, made_up_answers(400, seed=0))
    with open_run(tracking, "tune", {}, {}) as run:
        tracked = run.tracked
    files = (tmp_path / REFERENCE_FILE, write_per_class(tmp_path, SHOES.class_names, ("many", "few")))
    add_results(tracked, tracking, {}, {f"evaluation/{path.name}": path for path in files})
    return tracked.run_id


@pytest.fixture
def champion(store: Store, run_id: str) -> Registry:
    registry = Registry(store, "shoes")
    registry.ensure_model()
    made = store.client.create_model_version("shoes", f"runs:/{run_id}/model", run_id)
    registry.set_alias(CHAMPION, str(made.version))
    return registry


@pytest.fixture
def log(tmp_path: Path) -> Path:
    found = made_up_answers(600, seed=1)
    write_prediction_log(tmp_path / "log.parquet", SHOES, Answers(found.class_NK, found.log_probability_NK))
    return tmp_path / "log.parquet"


@pytest.mark.parametrize("address", ["runs:/{run_id}", "models:/shoes@champion", "models:/shoes/1"])
def test_the_reference_comes_from_a_run_or_a_version(
    champion: Registry, run_id: str, tmp_path: Path, address: str
) -> None:
    (tmp_path / "copies").mkdir()
    found = read_reference(fetch_reference(address.format(run_id=run_id), tmp_path / "copies"))
    assert (len(found.answers), found.source, found.shots) == (400, SHOES, ["many", "few"])


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert fetch_reference(str(tmp_path), tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("models:/shoes@nobody", TrackingError),
        ("models:/shoes/9", TrackingError),
        ("models:/hats@champion", TrackingError),
        ("runs:/0123456789abcdef0123456789abcdef", TrackingError),
    ],
)
def test_what_is_not_there_is_one_line(
    champion: Registry, tmp_path: Path, address: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        fetch_reference(address, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_run_without_a_reference_is_one_line(store: Store, tracking: TrackingParams, tmp_path: Path) -> None:
    with open_run(tracking, "tune", {}, {}) as run:
        pass
    with pytest.raises(ArtifactError, match="run evaluate again"):
        fetch_reference(f"runs:/{run.run_id}", tmp_path)


def test_a_monitoring_is_a_run_of_its_own(store: Store, tracking: TrackingParams, tmp_path: Path, log: Path) -> None:
    write_prediction_log(tmp_path / REFERENCE_FILE, SHOES, made_up_answers(400, seed=0))
    reference = read_reference(tmp_path / REFERENCE_FILE)
    content = analyse(reference, read_sample(log, SHOES), Thresholds(), resamplings=20)
    (tmp_path / "monitor.json").write_text(content.model_dump_json())
    publish_monitoring(content, {"monitor/monitor.json": tmp_path / "monitor.json"}, tracking)
    experiment = store.client.get_experiment_by_name("shoes")
    (run,) = store.client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("monitor", "FINISHED")
    assert run.data.metrics["monitor/accuracy_expected"] == pytest.approx(100 * content.accuracy.expected, abs=1e-3)
    assert (run.data.tags["mdpr.advice"], run.data.tags["mlflow.source.name"]) == ("keep", "mdpr monitor")
    copy = store.client.download_artifacts(run.info.run_id, "monitor/monitor.json", str(tmp_path))
    assert Monitoring.model_validate_json(Path(copy).read_text()) == content


def test_the_component_advises_as_the_command_does(
    store: Store, tracking: TrackingParams, tmp_path: Path, log: Path, request: pytest.FixtureRequest
) -> None:
    monitoring, page = (SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in ("monitoring", "page.html"))
    params = dump_yaml({"tracking": tracking.model_dump()})
    limits = {"max_drop_points": 2.0, "max_label_shift": 0.3, "max_drift_auc": 0.65}

    def advise(**changed: float) -> str:
        return run_monitor(params, str(tmp_path / "work"), str(log), limits | changed, monitoring=monitoring, page=page)

    assert advise() == "retrain"  # no champion yet
    request.getfixturevalue("champion")
    assert advise() == "keep"
    assert json.loads(Path(monitoring.path).read_text())["advice"] == monitoring.metadata["advice"] == "keep"
    assert "mdpr" in Path(page.path).read_text()
    with pytest.raises(SystemExit) as left:
        run_monitor(params, "", str(tmp_path / "nowhere"), limits, monitoring=monitoring, page=page)
    assert left.value.code == 2
