"""From a tuned model to a version in the registry, with its card: results, data, settings, and the gate's decision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from mdpr.artifacts import (
    SEEN_FILE,
    ModelConfig,
    Registration,
    TrackedRun,
    class_digest,
    read_metrics,
    read_predictions,
    read_run,
    read_shots,
    sha256,
)
from mdpr.errors import ArtifactError
from mdpr.evaluation.score_table import GROUPS, ROWS, in_percent, markdown_table, points
from mdpr.mlops.lineage import CONTEXTS, lineage_tags
from mdpr.mlops.publishing import mirror_run
from mdpr.mlops.registry import (
    FIGURES_TAG,
    GATE_INPUTS_TAG,
    ORIGIN_TAG,
    RESULTS_RUN_TAG,
    TEST_SET_TAG,
    Registry,
    Version,
)
from mdpr.mlops.runs import RESULTS_FOLDER, add_results, publish_waiting, result_metrics
from mdpr.mlops.served_model import Parts, log_served_model
from mdpr.mlops.store import Store, connect
from mdpr.params import RegisterParams, TrackingParams, TuneParams

GATE_INPUTS = ("predictions.parquet", "metrics.json", "per_class.csv", SEEN_FILE)
RANKING = "test/fused/all"
# Split and branch of the metrics that a logged model has, too.
RANKED_BY = {("test", "fused"), ("val", "base"), ("val", "routed"), ("val", "fused")}

GATE_HEADING = "\n## Gate\n\n"
NOT_JUDGED = "Not judged yet."


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


def gate_inputs(evaluation: Path) -> dict[str, str]:
    """sha256 of every file that the gate reads: what it decides on is what was registered. Raises `ArtifactError`."""
    for name in GATE_INPUTS:
        if not (evaluation / name).is_file():
            raise ArtifactError(f"{evaluation / name} is missing: run evaluate first")
    return {name: sha256(evaluation / name) for name in GATE_INPUTS}


def changed_input(version: Version, folder: Path) -> str | None:
    """The first file in `folder` that is not the one that `version` was registered with."""
    registered, found = version.json_tag(GATE_INPUTS_TAG), gate_inputs(folder)
    return next((name for name in {**registered, **found} if registered.get(name) != found.get(name)), None)


def gate_inputs_folder(tag: str) -> str:
    """The folder of the run's artifacts with the files of this tag; a later evaluation has a folder of its own."""
    return f"gate/{hashlib.sha256(tag.encode()).hexdigest()[:12]}"


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


def _tuner(tune: TuneParams) -> str:
    """The tuner with the settings that count for it, as text."""
    if tune.prompting in ("adaptformer", "lora"):
        return f"{tune.prompting}, width {tune.adapter_width or 'by the number of classes'}"
    if tune.prompting in ("none", "ssf", "bitfit"):
        return tune.prompting
    return f"{tune.prompting}, {tune.context_tokens} tokens, depth {tune.prompt_depth}"


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
