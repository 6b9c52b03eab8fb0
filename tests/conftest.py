"""Fixtures for the whole suite: the first stages of the real flow, on a small cut of the embedded data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mdpr.mlops.store import connect
from mdpr.params import Params, load_params
from mdpr.stages.stage import load_stage, run_stage

SMALL = ["prepare.max_images_per_class=60", "prepare.imbalance_ratio=10", "prepare.val_images_per_class=10"]


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def small_params(project_root: Path) -> Params:
    """params.yaml of the project, a small cut, and paths that hold from any working folder."""
    embedded = project_root / "data" / "embedded"
    return load_params(
        project_root / "params.yaml",
        [
            *SMALL,
            f"prepare.root={embedded / 'fashion-mnist'}",
            f"backbone.architecture={embedded / 'mdpr-tiny' / 'mdpr-tiny.json'}",
            f"backbone.weights={embedded / 'mdpr-tiny' / 'mdpr-tiny.safetensors'}",
            f"describe.path={embedded / 'knowledge' / 'fashion-mnist.json'}",
            f"promote.policy={project_root / 'mlflow' / 'promotion.yaml'}",
            "backbone.device=cpu",
        ],
    )


@pytest.fixture(scope="session")
def encoded(tmp_path_factory: pytest.TempPathFactory, small_params: Params) -> Mapping[str, Path]:
    """Real artifacts of prepare, probe, describe and encode: port -> path. Read them, do not change them."""
    folder = tmp_path_factory.mktemp("encoded")
    paths = {name: folder / name for name in ("prepared", "probe", "knowledge", "features")}
    for name in ("prepare", "probe", "describe", "encode"):
        run_stage(load_stage(name), paths, small_params)
    return paths


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store with its tables made, which takes MLflow seconds; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("empty_store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        connect().client.search_experiments()
    return folder / "mlflow.db"
