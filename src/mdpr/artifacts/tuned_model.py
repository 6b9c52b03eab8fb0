"""model/: a tuned model's configuration, history and training images; and what becomes of it afterwards.

That is run.json (the MLflow run of a result), registration.json (its version) and promotion.json (the gate's decision).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from mdpr.artifacts.formats import Format, read_csv, sha256, write_csv, write_json
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
    background: str  # what transparent images are laid on, as in the training data
    selected_epoch: int
    tau: float  # every answer is adjusted by tau log(share of the training images) (`tune.post_hoc`)
    val_accuracy: dict[str, float]  # class-balanced, of the selected epoch: base, routed, fused


def write_model(model: Path, config: ModelConfig, history: Sequence[Mapping[str, float]]) -> None:
    """config.json and history.csv, one row per epoch; the weights beside them are `model.safetensors`."""
    import pandas as pd

    write_json(model / "config.json", config)
    write_csv(model / "history.csv", pd.DataFrame(history).astype({"epoch": int}))


def read_model_config(model: Path) -> ModelConfig:
    """config.json; raises `ArtifactError`."""
    return ModelConfig.read(model / "config.json")


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


def read_seen(folder: Path, stage: str) -> np.ndarray:
    """The digests of all images that the model has seen, int64, sorted; raises `ArtifactError`.

    `folder` is the model/ that `stage` tune wrote, or the evaluation/ of evaluate, which copies the file.
    """
    import numpy as np

    path = folder / SEEN_FILE
    arrays, metadata = read_tensors(path, stage)
    if metadata.get("format") != SEEN_FORMAT or any(array.dtype != np.int64 for array in arrays.values()):
        raise ArtifactError(f"{path} does not hold digests of images ({SEEN_FORMAT}): run {stage} again")
    check_digest(path, arrays, metadata, stage)
    return np.unique(np.concatenate([np.empty(0, np.int64), *arrays.values()]))


def _run_id(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", text):
        raise ValueError("not the id of an MLflow run")
    return text


RunId = Annotated[str, AfterValidator(_run_id)]


class TrackedRun(Format):
    """The MLflow run that a folder of results belongs to; `digests` of what its model comes from (`model_digests`)."""

    format: Literal["mdpr-run/1"] = "mdpr-run/1"
    run_id: RunId
    experiment: str
    test_sha256: str | None = None  # of the test split behind the results; model/run.json has none
    digests: dict[str, str] = Field(default_factory=dict)


def read_run(folder: Path) -> TrackedRun:
    """run.json of model/ or evaluation/; raises `ArtifactError`."""
    return TrackedRun.read(folder / "run.json")


class Registration(Format):
    """One version in the MLflow model registry; `model_digest` is of what it computes with, not of its run.

    version: None for the model of a DVC experiment that did not register it.
    digests: of what the model comes from (`model_digests`).
    """

    format: Literal["mdpr-registration/1"] = "mdpr-registration/1"
    model_name: str
    version: str | None
    run_id: str
    model_digest: str
    alias: str
    source: str
    digests: dict[str, str] = Field(default_factory=dict)


class Check(Format):
    """One test of the gate: passed if `value` is above, at least or at most `threshold`, as `passes` says.

    If `value` is a confidence bound, `estimate` is the measured figure that it bounds; otherwise the two are equal.
    """

    name: str
    value: float
    estimate: float
    passes: Literal["above", "at least", "at most"]
    threshold: float
    passed: bool


class Promotion(Format):
    """The gate's decision about a version (None: the model was not registered).

    `champion_before` and `champion_after` are the versions with the alias `champion`; None: there was no champion.
    """

    format: Literal["mdpr-promotion/1"] = "mdpr-promotion/1"
    decision: Literal["promoted", "kept"]
    reason: str
    model_name: str
    version: str | None
    champion_before: str | None
    champion_after: str | None
    checks: tuple[Check, ...]
