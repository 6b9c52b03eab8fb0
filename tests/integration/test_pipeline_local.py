"""The whole Kubeflow pipeline on the embedded data, tasks in processes, up to a champion in a real store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.contract.kfp_server import Api, serving

from mdpr import __version__
from mdpr.artifacts import sha256
from mdpr.params import load_params
from mdpr.stages.stage import STAGES, load_stage

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "prepare.max_images_per_class": 300,
    "prepare.val_images_per_class": 20,
    "prepare.test_from": "share",
    "tune.epochs": 3,
    "tune.context_tokens": 4,
    "tune.base_loss": "logit_adjusted",  # so short a training with plain cross entropy does not pass the gate
    "tracking.model_name": "pipeline-test",
}
TIMEOUT_S = 600
pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, one folder a task in it, and the address of the MLflow store it used."""

    folder: Path
    store: str

    def executor_output(self, task: str) -> dict:
        return json.loads((self.folder / task / "executor_output.json").read_text("utf-8"))

    def metadata(self, task: str, artifact: str) -> dict:
        return self.executor_output(task)["artifacts"][artifact]["artifacts"][0]["metadata"]


def run_pipeline(workdir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`mdpr pipeline run` in a folder of its own, so that nothing is written into the project."""
    for name in ("data", "mlflow", "pipelines", "components", "params.yaml"):
        (workdir / name).symlink_to(PROJECT / name)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{workdir}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mdpr", "pipeline", "run", "--output", str(workdir / "runs"), *options]
    return subprocess.run(command, cwd=workdir, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    workdir = tmp_path_factory.mktemp("pipeline")
    options = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    result = run_pipeline(workdir, *options)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    (folder,) = (workdir / "runs").glob("mdpr-training-*")
    return Run(folder, f"sqlite:///{workdir}/mlflow.db")


def test_every_task_ran_once(run: Run) -> None:
    assert {path.name for path in run.folder.iterdir()} == {"configure", "require", "require-2", *STAGES, "close"}


def test_overrides_reached_the_stages(run: Run) -> None:
    classes = json.loads((run.folder / "prepare" / "prepared" / "classes.json").read_text("utf-8"))["classes"]
    assert max(item["train_images"] for item in classes) == SETTINGS["prepare.max_images_per_class"]
    config = json.loads((run.folder / "tune" / "model" / "config.json").read_text("utf-8"))
    assert config["tune"]["epochs"] == SETTINGS["tune.epochs"]


def test_the_ui_gets_numbers_a_confusion_matrix_and_a_report(run: Run) -> None:
    metrics = run.metadata("evaluate", "metrics")
    assert metrics
    assert all(isinstance(value, int | float) for value in metrics.values())
    matrix = run.metadata("evaluate", "confusion")["confusionMatrix"]
    total = sum(sum(row["row"]) for row in matrix["rows"])
    assert (len(matrix["annotationSpecs"]), total) == (10, 2_400)
    assert (run.folder / "evaluate" / "report").read_text("utf-8").lstrip().lower().startswith("<!doctype html")


def test_artifacts_carry_the_mlflow_run(run: Run) -> None:
    tuned = run.metadata("tune", "model")["run_id"]
    assert run.metadata("evaluate", "evaluation")["run_id"] == tuned


def test_model_artifacts_runs_and_versions_carry_the_same_digests(run: Run) -> None:
    """Data, knowledge, backbone, version: in Kubeflow's metadata and as MLflow's tags."""
    from mlflow import MlflowClient

    digests = {key: value for key, value in run.metadata("tune", "model").items() if key.startswith("mdpr.")}
    config = json.loads((run.folder / "tune" / "model" / "config.json").read_text("utf-8"))
    assert digests == {
        "mdpr.version": __version__,
        "mdpr.data_digest": run.metadata("prepare", "prepared")["mdpr.data_digest"],
        "mdpr.knowledge_digest": config["knowledge_digest"],
        "mdpr.backbone": config["fingerprint"],
    }
    client, registered = MlflowClient(run.store), run.metadata("register", "registration")
    version = client.get_model_version("pipeline-test", registered["version"])
    logged = client.get_run(run.metadata("tune", "model")["run_id"]).data
    origin = json.loads(version.tags["mdpr.origin"])
    for found in (registered, run.metadata("evaluate", "evaluation"), origin, logged.tags):
        assert {key: found[key] for key in digests} == digests


def test_ends_with_a_champion_in_the_registry(run: Run) -> None:
    from mlflow import MlflowClient

    champion = MlflowClient(run.store).get_model_version_by_alias("pipeline-test", "champion")
    assert str(run.metadata("register", "registration")["version"]) == str(champion.version)


def test_a_wrong_setting_is_one_line_before_anything_runs(tmp_path: Path) -> None:
    result = run_pipeline(tmp_path, "--set", "tune.epoch=1")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: tune.epoch is not a setting")
    assert not (tmp_path / "runs").exists()


def test_a_mistake_inside_a_task_is_one_line_and_fails_the_run(tmp_path: Path) -> None:
    result = run_pipeline(tmp_path, "--set", "prepare.root=no/such/folder")
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert result.returncode == 1
    assert sum(line.startswith("error: ") and "no/such/folder" in line for line in lines) == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert "'prepare'" in result.stderr.splitlines()[-1]


# --- the run's artifacts in a DVC workspace ---------------------------------------------------------------------------

RUN_ID = "5df0cd85-5615-4b99-8c17-a16f018c6819"
# In dvc.yaml; the others: data/PORT
PLACES = {"scores": "scores", "registration": "data/registration.json", "promotion": "data/promotion.json"}


@dataclass(frozen=True)
class Workspace:
    """A clone of the project with a DVC remote in a folder."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def fetch(self, *arguments: str, code: int = 0) -> str:
        return self.run("mdpr", "pipeline", "fetch", *arguments, code=code)

    def holds(self, run: Run) -> bool:
        """Whether every output is the run's, byte by byte."""
        ports = {port: name for name in STAGES for port in load_stage(name).outputs}
        return all(
            sha256(self.folder / PLACES.get(port, f"data/{port}")) == sha256(run.folder / name / port)
            for port, name in ports.items()
        )


@pytest.fixture
def workspace(tmp_path: Path, copy_project: Callable[[Path], None]) -> Workspace:
    folder = tmp_path / "workspace"
    copy_project(folder)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "AWS_", "GIT_"))}
    author = {f"GIT_{role}_{key}": "t" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    created = Workspace(folder, kept | author | {"PATH": path})
    created.run("git", "init", "--quiet")
    created.run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "remote"))
    created.run("git", "add", "--all")
    created.run("git", "commit", "--quiet", "-m", "start")
    return created


@pytest.fixture(scope="module")
def in_s3(run: Run, s3: str) -> dict[str, str]:
    """The run as a cluster lays it out, in the bucket mlflow; the variables that lead there."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs (pip install 'mdpr[s3]')")
    store = s3fs.S3FileSystem(endpoint_url=s3, key="key", secret="secret")  # noqa: S106 - moto takes any
    for artifact in (path for task in run.folder.iterdir() for path in task.iterdir()):
        if artifact.name != "executor_output.json":
            target = f"mlflow/v2/artifacts/mdpr-training/{RUN_ID}/{artifact.parent.name}/85a61675/{artifact.name}"
            store.put(str(artifact), target, recursive=artifact.is_dir())
    return {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def test_a_fetched_run_can_be_committed_and_pushed(run: Run, workspace: Workspace) -> None:
    said = workspace.fetch(str(run.folder))
    assert "wrote data/promotion.json" in said
    assert workspace.holds(run)
    assert load_params(workspace.folder / "params.yaml") == load_params(run.folder / "configure" / "settings")
    workspace.run("dvc", "commit", "--force", "--quiet")
    assert "up to date" in workspace.run("dvc", "status")
    workspace.run("git", "add", "--all")
    workspace.run("git", "commit", "--quiet", "-m", "fetched")
    assert workspace.run("git", "status", "--porcelain") == ""
    workspace.run("dvc", "push", "--quiet")
    workspace.fetch(str(run.folder))  # the same again changes nothing
    assert workspace.run("git", "status", "--porcelain") == ""


def test_work_that_is_not_committed_is_not_overwritten(run: Run, workspace: Workspace) -> None:
    params = workspace.folder / "params.yaml"
    params.write_text(params.read_text("utf-8").replace("epochs: 8", "epochs: 9"), "utf-8")
    model = workspace.folder / "data" / "model"
    model.mkdir()
    (model / "mine.txt").write_text("mine")
    scores = workspace.folder / "scores"
    shutil.rmtree(scores)  # of the repository's own last run
    scores.write_text("mine, too")
    error = workspace.fetch(str(run.folder), code=2)
    (line,) = error.splitlines()
    assert line.startswith("error: data/model, scores, params.yaml: changed and not committed; ")
    assert (model / "mine.txt").read_text() == "mine"
    assert not (workspace.folder / "data" / "prepared").exists()
    workspace.fetch(str(run.folder), "--force")
    assert workspace.holds(run)
    (kept,) = model.parent.glob("model.replaced-*")
    assert [(path.name, path.read_text()) for path in kept.iterdir()] == [("mine.txt", "mine")]
    (kept,) = workspace.folder.glob("scores.replaced-*")
    assert kept.read_text() == "mine, too"
    workspace.fetch(str(run.folder), "--force")  # an earlier output is no work of the user's
    assert len(list(model.parent.glob("*.replaced-*"))) == 1


def test_a_run_in_the_pipeline_root_of_a_cluster(run: Run, workspace: Workspace, in_s3: dict[str, str]) -> None:
    there = Workspace(workspace.folder, workspace.environment | in_s3)
    there.fetch(f"minio://mlflow/v2/artifacts/mdpr-training/{RUN_ID}?region=here")
    assert there.holds(run)


def test_a_run_by_its_id(run: Run, workspace: Workspace, in_s3: dict[str, str]) -> None:
    config = {"runtime_config": {"pipeline_root": "s3://mlflow/v2/artifacts"}}
    there = Workspace(workspace.folder, workspace.environment | in_s3)
    with serving(Api(["SUCCEEDED"], run=config, run_id=RUN_ID)) as api:
        there.fetch(RUN_ID, "--host", api.host)
        assert there.holds(run)
        assert "answered with status 404" in there.fetch("no-such-run", "--host", api.host, code=2)
    with serving(Api(["SUCCEEDED"], run_id=RUN_ID)) as api:
        error = there.fetch(RUN_ID, "--host", api.host, "--root", "s3://mlflow/elsewhere", code=2)
    assert error.startswith("error: s3://mlflow/elsewhere")


def test_what_is_no_whole_run_is_one_line(run: Run, workspace: Workspace, in_s3: dict[str, str]) -> None:
    for name in ("configure", "prepare", "validate", "probe", "encode"):  # describe came out of a cache
        shutil.copytree(run.folder / name, workspace.folder / "hole" / name)
    (workspace.folder / "empty").mkdir()
    away = workspace.environment | in_s3 | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    for address, message in {
        "hole": "hole has encode but not its input knowledge",
        "empty": "empty holds no output of a stage",
        "no/such": "no/such: there is no such folder",
        "nothing://x": "nothing://x cannot be opened (",
    }.items():
        (line,) = workspace.fetch(address, code=2).splitlines()
        assert line.startswith(f"error: {message}")
    (line,) = Workspace(workspace.folder, away).fetch("s3://mlflow/v2", code=2).splitlines()
    assert line.startswith("error: s3://mlflow/v2 cannot be read (")
    assert not (workspace.folder / "data" / "prepared").exists()
