"""Tasks in containers of a local Docker engine, with exit codes that can be trusted.

kfp's own runner lets the engine remove a container as soon as it ends, and counts one that is gone before its exit code
was read as a success: a task that failed at once may pass. Here it stays until its exit code was read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker  # type: ignore[import-untyped]
from docker.errors import DockerException, ImageNotFound  # type: ignore[import-untyped]
from docker.types import Mount  # type: ignore[import-untyped]
from kfp import local
from kfp.local import docker_task_handler

from mdpr.errors import ConfigError
from pipelines.cluster import DATA_KEYS, HUB_KEYS, LLM_KEYS, MLFLOW_LOGIN_KEYS

WORKDIR = "/workspace"  # of both images: relative paths in params.yaml start here
SHM_SIZE = "1g"  # torch's loaders hand batches over in shared memory; Docker gives 64 MB


def run_container(
    client: docker.DockerClient,
    image: str,
    command: Sequence[str],
    volumes: Mapping[str, Any],
    **container_run_args: Any,
) -> int:
    """Run `command` to its end, its log on stdout, and return the exit code; the container is removed."""
    container = client.containers.run(image, command, volumes=volumes, detach=True, **container_run_args)
    try:
        for line in container.logs(stream=True):
            print(line.decode(errors="replace"), end="")
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


@contextmanager
def trusted_exit_codes() -> Iterator[None]:
    """Put `run_container` in the place of kfp's own function."""
    original = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_container
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = original


def check_engine(images: Sequence[str]) -> None:
    """Raise `ConfigError` if no engine answers or an image is missing."""
    try:
        client = docker.from_env(timeout=10)
    except DockerException:
        raise ConfigError("no Docker engine answers: start one, or use --runner subprocess") from None
    try:
        for image in images:
            client.images.get(image)
    except ImageNotFound:
        raise ConfigError(f"the image {image} is missing: build it as components/Dockerfile says") from None
    finally:
        client.close()


def docker_runner(output: Path) -> local.DockerRunner:
    """Containers as the calling user, on the host's network, with MLflow's files kept under `output`.

    MLFLOW_* variables and the keys that a cluster takes from its secrets are handed on; without MLFLOW_TRACKING_URI the
    store is `output`/mlflow/mlflow.db.
    """
    mlflow = output / "mlflow"
    artifacts = mlflow / "mlruns"
    artifacts.mkdir(parents=True, exist_ok=True)
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{mlflow}/mlflow.db", "HOME": "/tmp"}  # noqa: S108
    secrets = {*MLFLOW_LOGIN_KEYS, *LLM_KEYS, *DATA_KEYS, *HUB_KEYS}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_") or name in secrets}
    return local.DockerRunner(
        network_mode="host",
        user=f"{os.getuid()}:{os.getgid()}",
        environment=environment,
        shm_size=SHM_SIZE,
        # kfp mounts `output` itself. MLflow puts a run's files into mlruns of the working folder.
        mounts=[
            Mount(str(mlflow), str(mlflow), type="bind"),
            Mount(f"{WORKDIR}/mlruns", str(artifacts), type="bind"),
        ],
    )
