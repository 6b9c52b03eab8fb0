"""model/: the configuration beside the learned weights, the history, and the MLflow run it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mdpr.artifacts.formats import Format, parse, read_json
from mdpr.config import BackboneParams, TuneParams
from mdpr.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd


class ModelConfig(Format):
    """All that is needed to rebuild a tuned model beside its weights, its features and its backbone."""

    format: Literal["mdpr-model/1"] = "mdpr-model/1"
    backbone: BackboneParams
    fingerprint: str
    tune: TuneParams
    class_names: tuple[str, ...]
    train_images: tuple[int, ...]
    knowledge_digest: str
    selected_epoch: int
    val_accuracy: dict[str, float]  # class-balanced, of the selected epoch: base, routed, fused


def read_model_config(model: Path) -> ModelConfig:
    path = model / "config.json"
    return parse(path, ModelConfig, read_json(path))


class TrackedRun(Format):
    """The MLflow run that a folder of results belongs to; `digests` of what its model comes from (`model_digests`)."""

    format: Literal["mdpr-run/1"] = "mdpr-run/1"
    run_id: str
    experiment: str
    test_sha256: str | None = None  # of the test split behind the results; model/run.json has none
    digests: dict[str, str] = Field(default_factory=dict)


def read_run(folder: Path) -> TrackedRun:
    path = folder / "run.json"
    return parse(path, TrackedRun, read_json(path))


def read_history(model: Path) -> pd.DataFrame:
    """history.csv, one row an epoch; raises `ArtifactError` where it is missing, empty or lacks a column."""
    import pandas as pd

    path = model / "history.csv"
    try:
        history = pd.read_csv(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run tune first") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ArtifactError(f"{path} is not a readable table: {error}") from None
    missing = [name for name in ("epoch", "loss", "val_base_all") if name not in history.columns]
    if missing or history.empty:
        raise ArtifactError(f"{path} has no {missing[0] if missing else 'epoch'}: run tune again")
    return history
