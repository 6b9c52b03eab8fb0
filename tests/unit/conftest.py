import os
import shutil
from pathlib import Path

import pytest

from mdpr.mlops.store import Store, connect
from mdpr.params import TrackingParams


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A real, empty MLflow store in `tmp_path`, which is the working folder too."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for name in [key for key in os.environ if key.startswith(("MLFLOW_", "DVC_", "KFP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return connect()


@pytest.fixture
def tracking() -> TrackingParams:
    return TrackingParams(experiment="shoes", model_name="shoes")
