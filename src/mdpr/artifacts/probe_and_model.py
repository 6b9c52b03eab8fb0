"""probe/: what the frozen CLIP makes of the training images. C classes, d joint embedding width.

model/: the configuration beside the learned weights, the history, and the MLflow run it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from mdpr.artifacts.formats import Format, class_digest, parse, read_json, read_tensors, write_json
from mdpr.errors import ArtifactError
from mdpr.params import BackboneParams, TuneParams

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Probe:
    """What the frozen CLIP makes of the training images, before anything is tuned.

    confusion_CC       row c: share of class c's images predicted as each class (rows sum to 1)
    rival_C            int64, the class that c is most confused with
    zero_shot_C        accuracy a class, 0..1
    log_prior_C        log of the estimated pre-training prior (METHOD: hidden bias), sums to 1 after exp
    text_Cd            unit-length class features of the zero-shot classifier (an ensemble of templates)
    logit_scale        exp of CLIP's own temperature parameter
    fingerprint        of the backbone
    """

    confusion_CC: np.ndarray
    rival_C: np.ndarray
    zero_shot_C: np.ndarray
    log_prior_C: np.ndarray
    text_Cd: np.ndarray
    logit_scale: float
    fingerprint: str


def write_probe(probe: Path, content: Probe, class_names: Sequence[str]) -> None:
    """probe.safetensors for the machine, zero_shot.csv for people."""
    import numpy as np
    import pandas as pd
    from safetensors.numpy import save_file

    arrays = {
        name: np.ascontiguousarray(getattr(content, name))
        for name in ("confusion_CC", "rival_C", "zero_shot_C", "log_prior_C", "text_Cd")
    }
    metadata = {
        "format": "mdpr-probe/1",
        "fingerprint": content.fingerprint,
        "logit_scale": repr(content.logit_scale),
        "classes": class_digest(class_names),
    }
    save_file(arrays, probe / "probe.safetensors", metadata)
    pd.DataFrame(
        {
            "class": list(class_names),
            "zero_shot_accuracy": content.zero_shot_C,
            "rival": [class_names[index] for index in content.rival_C],
            "hidden_prior": np.exp(content.log_prior_C),
        }
    ).to_csv(probe / "zero_shot.csv", index_label="index", float_format="%.6f")


def read_probe(probe: Path, class_names: Sequence[str]) -> Probe:
    arrays, metadata = read_tensors(probe / "probe.safetensors", "mdpr-probe/1", class_names)
    return Probe(**arrays, logit_scale=float(metadata["logit_scale"]), fingerprint=metadata["fingerprint"])


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


def write_model(model: Path, config: ModelConfig, history: Sequence[Mapping[str, float]]) -> None:
    """config.json and history.csv, one row per epoch; the weights beside them are `model.safetensors`."""
    import pandas as pd

    write_json(model / "config.json", config)
    pd.DataFrame(history).astype({"epoch": int}).to_csv(model / "history.csv", index=False)


def read_model_config(model: Path) -> ModelConfig:
    path = model / "config.json"
    return parse(path, ModelConfig, read_json(path))


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
