"""model/: the configuration beside the learned weights, and the history of the training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mdpr.artifacts.formats import Format, parse, read_csv, read_json, write_json
from mdpr.params import BackboneParams, TuneParams

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
    background: str = "white"  # what transparent images are laid on, as in the training data
    selected_epoch: int
    val_accuracy: dict[str, float]  # class-balanced, of the selected epoch: base, routed, fused


def write_model(model: Path, config: ModelConfig, history: Sequence[Mapping[str, float]]) -> None:
    """config.json and history.csv, one row per epoch; the weights beside them are `model.safetensors`."""
    import pandas as pd

    write_json(model / "config.json", config)
    pd.DataFrame(history).astype({"epoch": int}).to_csv(model / "history.csv", index=False)


def read_model_config(model: Path) -> ModelConfig:
    path = model / "config.json"
    return parse(path, ModelConfig, read_json(path))


def read_history(model: Path) -> pd.DataFrame:
    """history.csv, one row per epoch."""
    return read_csv(model / "history.csv", "tune", {"epoch": int, "loss": float, "val_base_all": float})
