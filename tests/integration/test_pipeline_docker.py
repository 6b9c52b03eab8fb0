"""The pipeline in containers of a real engine. `make test-docker` builds what these tests need; without it they skip.

The cheap half needs the cpu image alone: the image itself, the guard of exit codes, prepare and validate.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from components.images import IMAGE_CPU, IMAGE_GPU
from components.prepare.component import prepare
from components.validate.component import validate
from kfp import dsl, local
from tests.integration.variant_checks import PROJECT, check_best_went_on, check_shards_merged

from mdpr.stages.stage import STAGES

docker = pytest.importorskip("docker")
pytestmark = pytest.mark.integration

TIMEOUT_S = 1800
GUARD_RUNS = 50
REVISION = "org.opencontainers.image.revision"
SMALL = {"max_images_per_class": 60, "imbalance_ratio": 10, "val_images_per_class": 10}
SMALL_RUN = {
    **{f"prepare.{key}": value for key, value in SMALL.items()},
    "tune.epochs": 1,
    "tune.context_tokens": 4,
    "tune.prompt_depth": 1,
    "evaluate.ablations": "false",
    "evaluate.post_hoc": "false",
    "evaluate.gallery_images": 1,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except docker.errors.DockerException:
        pytest.skip("no Docker engine answers: tests/docker/engine.sh start (as root), or make test-docker")
    yield client
    client.close()


def needs(engine: Any, image: str) -> str:
    try:
        labels = engine.images.get(image).labels
    except docker.errors.ImageNotFound:
        pytest.skip(f"the image {image} is not there: make images")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True)
    if (built_from := labels.get(REVISION, "unknown")) != head.stdout.strip():
        pytest.skip(f"the image {image} was built from revision {built_from}, not from this one: make images")
    return image


@pytest.fixture(scope="module")
def cpu_image(engine: Any) -> str:
    return needs(engine, IMAGE_CPU)


@pytest.fixture(scope="module")
def gpu_image(engine: Any) -> str:
    return needs(engine, IMAGE_GPU)


def say(engine: Any, image: str, *command: str) -> str:
    """What `command` prints in a container of `image`."""
    output: bytes = engine.containers.run(image, list(command), network_mode="host", remove=True)
    return output.decode()


# --- the images ---------------------------------------------------------------------------------------------


def test_cpu_image_holds_no_cuda(engine: Any, cpu_image: str) -> None:
    names = say(engine, cpu_image, "pip", "list", "--format", "freeze").lower().split()
    assert "mlflow" in {name.partition("==")[0] for name in names}
    # nvidia-ml-py is Python alone: it asks a driver that need not be there.
    assert [
        name for name in names if name.startswith(("torch", "nvidia-", "triton")) and "nvidia-ml-py" not in name
    ] == []


@pytest.mark.parametrize("image", ["cpu_image", "gpu_image"])
def test_image_runs_as_a_user_and_holds_no_compiler_and_no_secret(
    engine: Any, image: str, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(image)
    assert say(engine, name, "id", "-u").strip() == "1000"
    found = say(
        engine, name, "sh", "-c", "command -v gcc cc g++ clang; ls /build /wheels /etc/pip.conf 2>/dev/null; true"
    )
    assert [line for line in found.splitlines() if line and line != "/etc/pip.conf"] == []
    history = "".join(str(layer["CreatedBy"]) for layer in engine.images.get(name).history())
    assert "index-url" not in history


@pytest.mark.parametrize("image", ["cpu_image", "gpu_image"])
def test_what_is_installed_fits_together(engine: Any, image: str, request: pytest.FixtureRequest) -> None:
    assert "No broken requirements" in say(engine, request.getfixturevalue(image), "pip", "check")


# --- exit codes ---------------------------------------------------------------------------------------------


def test_a_container_that_fails_at_once_never_counts_as_a_success(engine: Any, cpu_image: str) -> None:
    from pipelines.docker import run_container

    codes = [
        run_container(engine, cpu_image, ["sh", "-c", "exit 3"], {}, network_mode="host") for _ in range(GUARD_RUNS)
    ]
    assert codes == [3] * GUARD_RUNS


def test_a_task_that_fails_fails_the_run_and_leaves_no_container(engine: Any, cpu_image: str, tmp_path: Path) -> None:
    from pipelines.docker import docker_runner, trusted_exit_codes

    local.init(docker_runner(tmp_path), pipeline_root=str(tmp_path))
    with trusted_exit_codes(), pytest.raises(RuntimeError, match="prepare"):
        prepare(params="prepare: {root: no/such/folder}")
    assert engine.containers.list(all=True, filters={"ancestor": cpu_image}) == []


# --- the pipeline -------------------------------------------------------------------------------------------


def test_prepare_and_validate_hand_a_data_set_over(cpu_image: str, tmp_path: Path) -> None:
    from pipelines.docker import docker_runner, trusted_exit_codes

    @dsl.pipeline(name="data")
    def data() -> None:
        images = prepare(params=json.dumps({"prepare": SMALL})).output
        validate(params="", prepared=images)

    local.init(docker_runner(tmp_path), pipeline_root=str(tmp_path))
    with trusted_exit_codes():
        data()
    (run,) = tmp_path.glob("data-*")
    assert json.loads((run / "validate" / "validation" / "result.json").read_text("utf-8"))["success"] is True
    assert (run / "validate" / "docs").stat().st_uid == os.getuid()


def run_pipeline(output: Path, settings: Mapping[str, object], *options: str) -> Path:
    """`mdpr pipeline run --runner docker` in the project; the folder of the run."""
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "mdpr", "pipeline", "run", "--runner", "docker", "--output", str(output)]
    result = subprocess.run(
        [*command, *overrides, *options],
        cwd=PROJECT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    (run,) = output.glob("mdpr-*")
    return run


def test_the_whole_pipeline_ends_with_a_champion(cpu_image: str, gpu_image: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = {
        "prepare.max_images_per_class": 300,
        "prepare.val_images_per_class": 20,
        "tune.epochs": 3,
        "tune.context_tokens": 4,
        "tune.base_loss": "logit_adjusted",  # so short a training with plain cross entropy does not pass the gate
        "tracking.model_name": "docker-test",
    }
    run = run_pipeline(tmp_path, settings)
    assert {path.name for path in run.iterdir()} == {"configure", "require", "require-2", *STAGES, "close"}
    champion = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db").get_model_version_by_alias(
        "docker-test", "champion"
    )
    registration = json.loads((run / "register" / "registration").read_text("utf-8"))
    assert str(registration["version"]) == str(champion.version)


def test_shards_of_classes_run_in_containers_and_merge_to_what_one_describe_writes(
    cpu_image: str, gpu_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_pipeline(tmp_path, SMALL_RUN, "--variant", "knowledge", "--parameter", "shards=2")
    check_shards_merged(run, 2, tmp_path, monkeypatch)


def test_the_best_setting_of_a_sweep_in_containers_goes_on(cpu_image: str, gpu_image: str, tmp_path: Path) -> None:
    settings = "settings=[{tune: {seed: 1}}, {tune: {seed: 2, learning_rate: 1.0e-7}}]"
    run = run_pipeline(tmp_path, SMALL_RUN, "--variant", "sweep", "--parameter", settings)
    check_best_went_on(run, 2)
