"""The model card: a version's description in the registry, as Markdown.

From a tuned model to a version in the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mdpr.artifacts import (
    SHOT_GROUPS,
    ModelConfig,
    Registration,
    class_digest,
    read_metrics,
    read_predictions,
    read_run,
    sha256,
)
from mdpr.mlops.delivery import adopt, flush
from mdpr.mlops.registry import Registry, ensure_model
from mdpr.mlops.runs import add_results, flatten, lineage_tags
from mdpr.mlops.served_model import Parts, log_served_model
from mdpr.mlops.store import connect
from mdpr.params import RegisterParams, TrackingParams

BRANCHES = ("zero_shot", "base", "routed", "fused")
GROUPS = ("all", *SHOT_GROUPS)
GATE_HEADING = "\n## Gate\n\n"
NOT_JUDGED = "Not judged yet."


def model_card(config: ModelConfig, metrics: Mapping[str, Mapping[str, float]], test_images: int) -> str:
    """Results, data and settings of a model, with a place for the gate's words at the end.

    `metrics` maps a branch to its accuracies (fractions) by group, as in metrics.json.
    """
    smallest, largest = min(config.train_images), max(config.train_images)
    tune, classes = config.tune, len(config.class_names)
    settings = {
        "Backbone": config.fingerprint,
        "Prompts": f"{tune.prompting}, {tune.context_tokens} tokens, depth {tune.prompt_depth}",
        "Router": f"{tune.router_heads} heads" if tune.routing else "off",
        "Base loss": tune.base_loss,
        "Epoch chosen on validation": f"{config.selected_epoch} of {tune.epochs}",
        "Training images": f"{sum(config.train_images)} in {classes} classes, {smallest} to {largest} each",
        "Test images": str(test_images),
    }
    rows = [
        (branch, *(_points(metrics[branch].get(group)) for group in GROUPS)) for branch in BRANCHES if branch in metrics
    ]
    parts = [
        "## Results\n",
        "Class-balanced accuracy on the test images, percent.\n",
        _table(("branch", *GROUPS), rows),
        "\n## Data and settings\n",
        _table(("", ""), list(settings.items())),
    ]
    return with_gate("\n".join(parts), NOT_JUDGED)


def with_gate(card: str, words: str) -> str:
    """`card` with its last section, the gate's, saying `words`."""
    return card.partition(GATE_HEADING)[0] + GATE_HEADING + words + "\n"


def gate_of(card: str) -> str:
    """What the gate has said on `card`."""
    return card.partition(GATE_HEADING)[2].strip() or NOT_JUDGED


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _points(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


LABEL_SET_TAG = "mdpr.label_set"
TEST_SET_TAG = "mdpr.test_sha256"
PREDICTIONS_TAG = "mdpr.predictions_sha256"
RESULTS_RUN_TAG = "mdpr.results_run_id"  # the run whose artifacts hold the version's predictions
LATENCY_TAG, LATENCY_DEVICE_TAG = "mdpr.latency_ms", "mdpr.latency_device"
PREDICTIONS_FILE = "predictions.parquet"


def register(parts: Parts, evaluation: Path, tracking: TrackingParams, params: RegisterParams) -> Registration:
    """A version of the model in `parts` with its results, its card and the alias `params.alias`.

    The version that the same model digest already has is used again: its results, card and alias are renewed.
    Raises `TrackingError`, and `ArtifactError` where a part is missing.
    """
    digest, config, run = parts.digest(), parts.config, read_run(evaluation)
    metrics, predictions = read_metrics(evaluation), read_predictions(evaluation)
    store = connect()
    flush(store, Path(tracking.outbox))
    here = adopt(store, run, tracking.experiment)
    if here != run:  # neither training nor evaluation happened in this store: their results come along now
        files = sorted(path for path in evaluation.iterdir() if path.is_file())
        here = add_results(here, tracking, flatten({"test": metrics}), files, tags=run.digests)
    registry = Registry(store, tracking.model_name)
    with registry.locked():
        version = registry.find_by_digest(digest)
        if version is None:
            inputs = (parts.knowledge, parts.features, parts.model, evaluation)
            model_id, latency = log_served_model(store, here, parts, Path(params.pyfunc))
            origin = {
                LABEL_SET_TAG: class_digest(config.class_names),
                "mdpr.backbone": config.fingerprint,
                "mdpr.knowledge_digest": config.knowledge_digest,
            }
            if latency:
                origin |= {LATENCY_TAG: f"{latency.ms:.3f}", LATENCY_DEVICE_TAG: latency.device}
            version = registry.create(model_id, here.run_id, digest, run.digests | origin | lineage_tags(inputs))
        ensure_model(store, tracking.model_name, here.run_id)
        card = model_card(config, metrics, test_images=len(predictions))
        results = {
            RESULTS_RUN_TAG: here.run_id,
            PREDICTIONS_TAG: sha256(evaluation / PREDICTIONS_FILE),
            TEST_SET_TAG: run.test_sha256 or "not recorded",
            **{f"mdpr.test.fused.{key}": f"{value:.4f}" for key, value in metrics["fused"].items()},
        }
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
