"""From a tuned model to a version in the registry: the served model (models from code), the files that the gate reads,
and the card with results, data, settings and the gate's decision."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mdpr
from mdpr.artifacts import (
    SEEN_FILE,
    ModelConfig,
    Registration,
    TrackedRun,
    class_digest,
    read_metrics,
    read_model_config,
    read_predictions,
    read_run,
    read_shots,
    sha256,
)
from mdpr.errors import ArtifactError, TrackingError
from mdpr.evaluation.score_table import GROUPS, ROWS, in_percent, markdown_table, points
from mdpr.mlops.publishing import mirror_run, now_ms
from mdpr.mlops.registry import (
    DIGEST_TAG,
    FIGURES_TAG,
    GATE_INPUTS_TAG,
    ORIGIN_TAG,
    RESULTS_RUN_TAG,
    TEST_SET_TAG,
    Registry,
    Version,
)
from mdpr.mlops.runs import (
    CONTEXTS,
    RESULTS_FOLDER,
    add_results,
    flatten,
    lineage_tags,
    publish_waiting,
    result_metrics,
)
from mdpr.mlops.store import Store, connect, translate_errors
from mdpr.params import RegisterParams, TrackingParams, TuneParams

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

GATE_INPUTS = ("predictions.parquet", "metrics.json", "per_class.csv", SEEN_FILE)
RANKING = "test/fused/all"
# Split and branch of the metrics that a logged model has, too.
RANKED_BY = {("test", "fused"), ("val", "base"), ("val", "routed"), ("val", "fused")}

GATE_HEADING = "\n## Gate\n\n"
NOT_JUDGED = "Not judged yet."

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


# --- the version --------------------------------------------------------------------------------------------


def register(parts: Parts, evaluation: Path, tracking: TrackingParams, params: RegisterParams) -> Registration:
    """A version of the model in `parts` with its results, its card and the alias `params.alias`.

    The version that the same model digest already has is used again: its results, card and alias are renewed.
    Raises `TrackingError`, and `ArtifactError` if a part is missing.
    """
    digest, config, run = parts.digest(), parts.config, read_run(evaluation)
    metrics, predictions, inputs = read_metrics(evaluation), read_predictions(evaluation), gate_inputs(evaluation)
    read_shots(evaluation)
    store = connect()
    publish_waiting(store, tracking)
    here = mirror_run(store, run.model_copy(update={"experiment": tracking.experiment}))
    _ensure_results(store, here, run, evaluation, metrics, tracking)
    registry, gate_tag = Registry(store, tracking.model_name), json.dumps(inputs)
    with registry.locked():
        version = registry.find_by_digest(digest)
        if version is None:
            folders = (parts.knowledge, parts.features, parts.model, evaluation)
            model_id = log_served_model(store, here, parts, Path(params.pyfunc))
            origin = {"mdpr.label_set": class_digest(config.class_names), **run.digests, **lineage_tags(folders)}
            version = registry.create(model_id, digest, {ORIGIN_TAG: json.dumps(origin)})
        registry.ensure_model()
        registry.link(version)
        _score_model(store, version, config)
        for name in inputs:
            store.client.log_artifact(here.run_id, str(evaluation / name), gate_inputs_folder(gate_tag))
        results = {
            RESULTS_RUN_TAG: here.run_id,
            GATE_INPUTS_TAG: gate_tag,
            TEST_SET_TAG: run.test_sha256 or "",
            FIGURES_TAG: json.dumps(in_percent(metrics["fused"])),
        }
        card = model_card(config, metrics, test_images=len(predictions))
        registry.annotate(version.number, results, with_gate(card, gate_of(version.card)))
        registry.set_alias(params.alias, version.number)
    return Registration(
        model_name=version.name,
        version=version.number,
        run_id=version.run_id,
        model_digest=digest,
        alias=params.alias,
        source=version.source,
        digests=run.digests,
    )


def unregistered(parts: Parts, evaluation: Path, tracking: TrackingParams, params: RegisterParams) -> Registration:
    """The registration of a model that gets no version. Raises `ArtifactError` if a part is missing."""
    run = read_run(evaluation)
    return Registration(
        model_name=tracking.model_name,
        version=None,
        run_id=run.run_id,
        model_digest=parts.digest(),
        alias=params.alias,
        source="",
        digests=run.digests,
    )


def _ensure_results(
    store: Store,
    here: TrackedRun,
    run: TrackedRun,
    evaluation: Path,
    metrics: Mapping[str, Mapping[str, float]],
    tracking: TrackingParams,
) -> None:
    """The results in the run, if neither evaluate nor the outbox brought them: they were made beside another store."""
    figures, known = result_metrics(metrics), store.client.get_run(here.run_id).data.metrics
    if known.get(RANKING) == figures[RANKING]:
        return
    files = {f"{RESULTS_FOLDER}/{path.name}": path for path in evaluation.iterdir() if path.is_file()}
    add_results(here, tracking, figures, files, tags=run.digests)


def _score_model(store: Store, version: Version, config: ModelConfig) -> None:
    """The run's figures as the logged model's own, each on its dataset, so that MLflow ranks models by them.

    The test figures, and the validation accuracies of the epoch that was chosen.
    """
    from mlflow.entities import Metric

    model_id, run = version.source.removeprefix("models:/"), store.client.get_run(version.run_id)
    used_for = {tag.value: item.dataset for item in run.inputs.dataset_inputs for tag in item.tags}
    known = {(item.key, item.step, item.value) for item in store.client.get_logged_model(model_id).metrics or ()}
    metrics = []
    for name in run.data.metrics:
        split, _, figure = name.partition("/")
        if (split, figure.partition("/")[0]) not in RANKED_BY:
            continue
        history = sorted(store.client.get_metric_history(version.run_id, name), key=lambda item: item.timestamp)
        steps = {item.step: item for item in history}
        found = steps.get(config.selected_epoch if split == "val" else max(steps))
        if found is None or (name, found.step, found.value) in known:
            continue
        data = used_for.get(CONTEXTS["val" if split == "val" else "test"])
        on = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
        one = Metric(name, found.value, found.timestamp, found.step, model_id=model_id, run_id=version.run_id, **on)
        metrics.append(one)
    if metrics:
        store.client.log_batch(version.run_id, metrics=metrics)


# --- its card -----------------------------------------------------------------------------------------------


def model_card(config: ModelConfig, metrics: Mapping[str, Mapping[str, float]], test_images: int) -> str:
    """Results, data and settings of a model, with a section for the gate's decision at the end.

    `metrics` maps a branch to its accuracies (fractions) by group, as in metrics.json.
    """
    smallest, largest = min(config.train_images), max(config.train_images)
    tune, classes = config.tune, len(config.class_names)
    settings = {
        "Backbone": config.fingerprint,
        "Tuner": _tuner(tune),
        "Head": tune.head if tune.head == "text" else f"{tune.head}, from {tune.head_init}",
        "Router": f"{tune.router_heads} heads" if tune.routing else "off",
        "Base loss": tune.base_loss,
        "Adjusted afterwards": f"by tau = {config.tau:.1f}, chosen on validation" if config.tau else "no",
        "Epoch chosen on validation": f"{config.selected_epoch + 1} of {tune.epochs}",
        "Training images": f"{sum(config.train_images)} in {classes} classes, {smallest} to {largest} each",
        "Test images": str(test_images),
    }
    rows = [(row, *(points(metrics[row].get(group)) for group in GROUPS)) for row in ROWS if row in metrics]
    parts = [
        "## Results\n",
        "Class-balanced accuracy on the test images, percent.\n",
        markdown_table(("branch", *GROUPS), rows),
        "\n## Data and settings\n",
        markdown_table(("", ""), settings.items()),
    ]
    return with_gate("\n".join(parts), NOT_JUDGED)


def with_gate(card: str, words: str) -> str:
    """`card` with `words` as its last section, the gate's."""
    return card.partition(GATE_HEADING)[0] + GATE_HEADING + words + "\n"


def gate_of(card: str) -> str:
    """The gate's section of `card`."""
    return card.partition(GATE_HEADING)[2].strip() or NOT_JUDGED


def _tuner(tune: TuneParams) -> str:
    """The tuner with the settings that count for it, as text."""
    if tune.prompting in ("adaptformer", "lora"):
        return f"{tune.prompting}, width {tune.adapter_width or 'by the number of classes'}"
    if tune.prompting in ("none", "ssf", "bitfit"):
        return tune.prompting
    return f"{tune.prompting}, {tune.context_tokens} tokens, depth {tune.prompt_depth}"


# --- what the gate reads ------------------------------------------------------------------------------------


def gate_inputs(evaluation: Path) -> dict[str, str]:
    """sha256 of every file that the gate reads: what it decides on is what was registered. Raises `ArtifactError`."""
    for name in GATE_INPUTS:
        if not (evaluation / name).is_file():
            raise ArtifactError(f"{evaluation / name} is missing: run evaluate first")
    return {name: sha256(evaluation / name) for name in GATE_INPUTS}


def changed_input(version: Version, folder: Path) -> str | None:
    """The first file in `folder` that is not the one that `version` was registered with."""
    registered = version.json_tag(GATE_INPUTS_TAG)
    return next((name for name, digest in gate_inputs(folder).items() if registered.get(name) != digest), None)


def gate_inputs_folder(tag: str) -> str:
    """The folder of the run's artifacts with the files of this tag; a later evaluation has a folder of its own."""
    return f"gate/{hashlib.sha256(tag.encode()).hexdigest()[:12]}"


# --- the served model ---------------------------------------------------------------------------------------


def log_served_model(store: Store, run: TrackedRun, parts: Parts, code: Path) -> str:
    """Log the model to `run`, served by the file `code`; returns its MLflow id. The caller holds the registry's lock.

    It is loaded and tried on one picture before it is uploaded: a model that fails never becomes a version.
    Without torch in this environment (a small image of the cluster) that trial is left out.
    Raises `TrackingError`, and `ArtifactError` if a part is missing.
    """
    if not code.is_file():
        raise TrackingError(f"register.pyfunc: {code} does not exist: run from the project folder or name the file")
    from mlflow import pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from mlflow.models.model import MLMODEL_FILE_NAME

    client = store.client
    # Not pyfunc.log_model: it needs an active run, and would open the finished run again.
    with translate_errors(store.uri), TemporaryDirectory(prefix="mdpr-") as folder:
        saved, form = Path(folder) / "model", Model(run_id=run.run_id)
        pyfunc.save_model(
            path=str(saved),
            mlflow_model=form,
            python_model=str(code),
            artifacts=_copy_parts(parts, Path(folder) / "parts"),
            code_paths=[str(Path(mdpr.__file__).parent)],
            pip_requirements=requirements(),
            signature=signature(),
            input_example=(_example(), {"top_k": 5, "explain": False}),
        )
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


def _copy_parts(parts: Parts, target: Path) -> dict[str, str]:
    """Paths that MLflow copies into the model: folders with only the files that count, and a local backbone."""
    artifacts = {}
    for name, files in parts.files().items():
        (target / name).mkdir(parents=True)
        for file in files:
            shutil.copy2(file, target / name)
        artifacts[name] = str(target / name)
    for name in ("architecture", "weights"):
        value = getattr(parts.config.backbone, name)
        if Path(value).is_file():
            artifacts[name] = value
        elif "/" in value:  # not the name of a model or a set of weights that open_clip knows
            raise ArtifactError(f"backbone.{name}: {value} does not exist, the served model needs it")
    return artifacts


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


def _example() -> Any:
    import pandas as pd

    return pd.DataFrame({"image": [EXAMPLE_IMAGE]})
