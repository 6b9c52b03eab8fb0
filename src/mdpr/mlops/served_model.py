"""The servable model: what goes into it, its digest, and how it is logged to MLflow (models from code)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mdpr
from mdpr.artifacts import ModelConfig, TrackedRun, read_model_config, sha256
from mdpr.errors import ArtifactError, TrackingError
from mdpr.mlops.lineage import flatten
from mdpr.mlops.publishing import now_ms
from mdpr.mlops.registry import DIGEST_TAG
from mdpr.mlops.store import Store, translate_errors

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import Model


LOGGED_NAME = "model"
ABANDONED_AFTER_MS = 3_600_000
# What serving imports. The pipeline's own needs (DVC, Kubeflow, LangChain, Great Expectations) stay out.
REQUIRED = (
    "numpy",
    "open-clip-torch",
    "pandas",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "torch",
    "torchvision",
)
# The smallest PNG: one grey pixel. It shows the form of a request, and that the model answers.
EXAMPLE_IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="


@dataclass(frozen=True)
class Parts:
    """The folders a model is made of. `files` is what it computes with; its history and run do not count."""

    knowledge: Path
    features: Path
    model: Path

    @property
    def config(self) -> ModelConfig:
        """config.json of the model; raises `ArtifactError`."""
        return read_model_config(self.model)

    def files(self) -> dict[str, list[Path]]:
        """Folder -> the files of it that the model computes with."""
        return {
            "model": [self.model / "model.safetensors", self.model / "config.json"],
            "features": [self.features / "knowledge.safetensors"],
            "knowledge": [self.knowledge / "knowledge.json"],
        }

    def digest(self) -> str:
        """sha256 of the files' names and contents: equal digests compute alike. Raises `ArtifactError`."""
        digest = hashlib.sha256()
        for folder, files in self.files().items():
            for file in files:
                if not file.is_file():
                    raise ArtifactError(f"{file} is missing: run the stage that writes it")
                digest.update(f"{folder}/{file.name}\0{sha256(file)}\n".encode())
        return digest.hexdigest()


def log_served_model(store: Store, run: TrackedRun, parts: Parts, code: Path) -> str:
    """Log the model to `run`, served by the file `code`; returns its MLflow id. The caller holds the registry's lock.

    It is loaded and tried on one picture before it is uploaded: a model that fails never becomes a version.
    Without torch in this environment (a small image of the cluster) that trial is left out.
    Raises `TrackingError`, and `ArtifactError` if a part is missing.
    """
    if not code.is_file():
        raise TrackingError(f"register.pyfunc: {code} does not exist: run from the project folder or name the file")
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from mlflow.models.model import MLMODEL_FILE_NAME

    client = store.client
    # Not pyfunc.log_model: it needs an active run, and would open the finished run again.
    with translate_errors(store.uri), TemporaryDirectory(prefix="mdpr-") as folder:
        saved, form = Path(folder) / "model", Model(run_id=run.run_id)
        _save(saved, parts, code, form)
        if util.find_spec("torch"):
            _try_out(saved)
        # The store gets an entry only now: a process that is killed before leaves nothing unready there.
        logged, status = _open_logged_model(store, run, parts), "FAILED"
        form.model_id, form.artifact_path = logged.model_id, logged.artifact_location
        form.save(str(saved / MLMODEL_FILE_NAME))
        try:
            client.log_model_artifacts(logged.model_id, str(saved))
            status = "READY"
        finally:
            client.finalize_logged_model(logged.model_id, status)
        outputs = client.get_run(run.run_id).outputs
        if logged.model_id not in {item.model_id for item in (outputs.model_outputs if outputs else ())}:
            client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return str(logged.model_id)


def _open_logged_model(store: Store, run: TrackedRun, parts: Parts) -> LoggedModel:
    """The logged model of these parts in `run`: the one that a killed `register` left unfinished, or a new one.

    Those that killed processes left of other models are deleted. Beside a server they count as left after a time.
    """
    client, digest, config = store.client, parts.digest(), parts.config
    known = client.get_run(run.run_id)
    experiment_id = known.info.experiment_id
    for model in client.search_logged_models([experiment_id], f"tags.`{DIGEST_TAG}` != '{digest}'"):  # the newest first
        if model.status == "PENDING" and (store.file or now_ms() - model.creation_timestamp > ABANDONED_AFTER_MS):
            client.delete_logged_model(model.model_id)
    query = f"source_run_id = '{run.run_id}' AND tags.`{DIGEST_TAG}` = '{digest}'"
    if found := client.search_logged_models([experiment_id], query):
        return found[0]
    tune = flatten({"tune": config.tune, "backbone": config.backbone})
    params = tune | known.data.params | {"fingerprint": config.fingerprint, "selected_epoch": config.selected_epoch}
    return client.create_logged_model(
        experiment_id,
        LOGGED_NAME,
        source_run_id=run.run_id,
        tags={DIGEST_TAG: digest},
        params={key: str(value) for key, value in params.items()},
        model_type="classifier",
    )


def _save(saved: Path, parts: Parts, code: Path, form: Model) -> None:
    """Everything that serving needs, as MLflow lays it out, in the folder `saved`."""
    from mlflow import pyfunc

    with _artifacts(parts) as artifacts:
        pyfunc.save_model(
            path=str(saved),
            mlflow_model=form,
            python_model=str(code),
            artifacts=artifacts,
            code_paths=[str(Path(mdpr.__file__).parent)],
            pip_requirements=requirements(),
            signature=signature(),
            input_example=(_example(), {"top_k": 5, "explain": False}),
        )


def _try_out(saved: Path) -> None:
    """Raises `TrackingError` unless the model answers."""
    from mlflow import pyfunc

    answer = pyfunc.load_model(str(saved)).predict(_example(), params={"top_k": 1, "explain": True})
    if answer["error"].notna().any():
        raise TrackingError(f"the model does not answer: {answer['error'].iloc[0]}")
    for compiled in saved.rglob("__pycache__"):
        shutil.rmtree(compiled)


def requirements() -> list[str]:
    """pip requirements of serving: the versions installed here, mdpr's own range for what is not."""
    declared = [item.partition(";")[0].strip() for item in metadata.requires("mdpr") or ()]
    pins = []
    for name in REQUIRED:
        try:
            pins.append(f"{name}=={metadata.version(name).partition('+')[0]}")  # torch's +cpu is not on the index
        except metadata.PackageNotFoundError:
            pins.append(next((item for item in declared if item.lower().startswith(name)), name))
    return pins


def signature() -> Any:
    """Input, parameters and output of the served model, as `mlflow/model.py` implements them."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Map, Object, Property

    ranked = Object([Property("class", DataType.string), Property("probability", DataType.double)])
    consulted = Object([Property("weight", DataType.double), Property("sentence", DataType.string)])
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),  # text or bytes, each row judged on its own
        outputs=Schema(
            [
                ColSpec(DataType.string, "class", required=False),
                ColSpec(DataType.double, "probability", required=False),
                ColSpec(Array(ranked), "top_k", required=False),
                ColSpec(Map(consulted), "routing", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.long, 5), ParamSpec("explain", DataType.boolean, False)]),
    )


@contextmanager
def _artifacts(parts: Parts) -> Iterator[dict[str, str]]:
    """Paths that MLflow copies into the model: folders with only the files that count, and a local backbone."""
    backbone = parts.config.backbone
    with TemporaryDirectory(prefix="mdpr-") as folder:
        artifacts = {}
        for name, files in parts.files().items():
            target = Path(folder) / name
            target.mkdir()
            for file in files:
                shutil.copy2(file, target)
            artifacts[name] = str(target)
        for name in ("architecture", "weights"):
            value = getattr(backbone, name)
            if Path(value).is_file():
                artifacts[name] = value
            elif "/" in value:  # not the name of a model or a set of weights that open_clip knows
                raise ArtifactError(f"backbone.{name}: {value} does not exist, the served model needs it")
        yield artifacts


def _example() -> Any:
    import pandas as pd

    return pd.DataFrame({"image": [EXAMPLE_IMAGE]})
