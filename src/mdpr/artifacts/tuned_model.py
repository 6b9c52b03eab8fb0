"""model/: the configuration beside the learned weights, the history of the training run, and the images behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mdpr.artifacts.formats import Format, parse, read_csv, read_json, sha256, write_csv, write_json
from mdpr.artifacts.tensors import check_digest, read_tensors, write_tensors
from mdpr.errors import ArtifactError
from mdpr.params import BackboneParams, TuneParams

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SEEN_FILE = "seen.safetensors"
SEEN_FORMAT = "mdpr-seen/1"


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
    tau: float = 0.0  # every answer is adjusted by tau log(share of the training images) (`tune.post_hoc`)
    val_accuracy: dict[str, float]  # class-balanced, of the selected epoch: base, routed, fused


def write_model(model: Path, config: ModelConfig, history: Sequence[Mapping[str, float]]) -> None:
    """config.json and history.csv, one row per epoch; the weights beside them are `model.safetensors`."""
    import pandas as pd

    write_json(model / "config.json", config)
    write_csv(model / "history.csv", pd.DataFrame(history).astype({"epoch": int}))


def read_model_config(model: Path) -> ModelConfig:
    path = model / "config.json"
    return parse(path, ModelConfig, read_json(path))


def tuned_digest(model: Path) -> str:
    """sha256 of the learned weights and the configuration: which model gave an answer."""
    digests = "".join(sha256(model / name) for name in ("model.safetensors", "config.json"))
    return hashlib.sha256(digests.encode()).hexdigest()


def read_history(model: Path) -> pd.DataFrame:
    """history.csv, one row per epoch."""
    return read_csv(model / "history.csv", "tune", {"epoch": int, "loss": float, "val_base_all": float})


def write_seen(model: Path, *, train_N: np.ndarray, val_N: np.ndarray) -> None:
    """seen.safetensors: which images the model was trained on, and which its epoch was chosen on (`image_digests`)."""
    import numpy as np

    arrays = {"train": np.unique(train_N), "val": np.unique(val_N)}  # sorted: the same images give the same bytes
    write_tensors(model / SEEN_FILE, arrays, {"format": SEEN_FORMAT})


def read_seen(folder: Path) -> np.ndarray | None:
    """The digests of all images that the model has seen, int64, sorted; None if its version of tune kept none.

    `folder` is model/, or the evaluation/ of that model. Raises `ArtifactError` for a damaged file.
    """
    import numpy as np

    path = folder / SEEN_FILE
    if not path.exists():
        return None
    arrays, metadata = read_tensors(path, "tune")
    if metadata.get("format") != SEEN_FORMAT or any(array.dtype != np.int64 for array in arrays.values()):
        raise ArtifactError(f"{path} does not hold digests of images ({SEEN_FORMAT}): run tune again")
    check_digest(path, arrays, metadata, "tune")
    return np.unique(np.concatenate([np.empty(0, np.int64), *arrays.values()]))
