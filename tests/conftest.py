"""Fixtures for the whole suite: the first stages of the real flow, on a small cut of the embedded data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from mdpr.launch import collect_rarely
from mdpr.mlops.store import connect
from mdpr.params import Params, load_params
from mdpr.stages.stage import load_stage, run_stage

SMALL = [
    "prepare.max_images_per_class=60",
    "prepare.imbalance_ratio=10",
    "prepare.val_images_per_class=10",
    "prepare.test_from=share",
    "prepare.test_share=0.05",  # 60 test images per class; the archive's own are 1,000
]


def pytest_configure() -> None:
    """As every command does; the tests import all that the commands import."""
    collect_rarely()
    settings.register_profile("mdpr", deadline=None)  # a busy machine is no fault
    settings.load_profile("mdpr")


@pytest.fixture(scope="session", autouse=True)
def stacks_without_source() -> Iterator[None]:
    """KFP takes `inspect.stack()` for every option of every task, only for the name of a function.

    With source lines, each frame of pytest costs a search of all imported modules: seconds per compiled pipeline.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", partial(inspect.stack, context=0))
        yield


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
