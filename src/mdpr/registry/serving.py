"""What `mdpr serve` runs: MLflow's own server, for one version that is named before it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mdpr.errors import TrackingError
from mdpr.registry.aliases import Registry
from mdpr.tracking.store import DEFAULT_URI, connect

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
DEFAULT_TIMEOUT_S = 60


def find_version(model_name: str, alias: str) -> str:
    """The version behind `alias` now, so that every worker serves the same; raises `TrackingError` without one."""
    version = Registry(connect(), model_name).behind(alias)
    if version is None:
        raise TrackingError(f"{model_name} has no version with the alias {alias}: run promote, or name another alias")
    return version.number


def serve_command(model_name: str, version: str, *, host: str, port: int, workers: int, timeout_s: int) -> list[str]:
    """`mlflow models serve` as arguments; --env-manager local: this environment has what the model needs."""
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{model_name}/{version}"]
    command += ["--env-manager", "local", "--host", host, "--port", str(port)]
    return [*command, "--workers", str(workers), "--timeout", str(timeout_s)]


def serve_environment(environment: Mapping[str, str], workers: int) -> dict[str, str]:
    """`environment` with what serving needs; what the user has set stays.

    Workers share the cores: with all of them in each, PyTorch's threads would stand in each other's way.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    programs = str(Path(sys.executable).parent)  # MLflow starts uvicorn by name
    path = os.pathsep.join([programs, *filter(None, [environment.get("PATH")])])
    uri = environment.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    defaults = {"OMP_NUM_THREADS": str(threads), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**defaults, **environment, "PATH": path, "MLFLOW_TRACKING_URI": uri}
