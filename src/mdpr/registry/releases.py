"""From a tuned model to a version in the registry."""

from __future__ import annotations

from pathlib import Path

from mdpr.artifacts import Registration, class_digest, read_metrics, read_predictions, read_run, sha256
from mdpr.config import RegisterParams, TrackingParams
from mdpr.registry.aliases import Registry
from mdpr.registry.model_card import gate_of, model_card, with_gate
from mdpr.registry.served_model import Parts, log_served_model
from mdpr.registry.succession import ensure_model
from mdpr.tracking.adoption import adopt
from mdpr.tracking.flushing import flush
from mdpr.tracking.lineage import flatten, lineage_tags
from mdpr.tracking.runs import add_results
from mdpr.tracking.store import connect

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
    flush(store, Path(tracking.spool))
    here = adopt(store, run, tracking.experiment)
    if here != run:  # neither training nor evaluation happened in this store: their results come along now
        files = sorted(path for path in evaluation.iterdir() if path.is_file())
        here = add_results(here, tracking, flatten({"test": metrics}), files, tags=run.digests)
    registry = Registry(store, tracking.model_name)
    with registry.locked():
        version = registry.with_digest(digest)
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
        registry.point(params.alias, version.number)
    return Registration(
        model_name=version.name,
        version=version.number,
        run_id=version.run_id,
        model_digest=digest,
        alias=params.alias,
        source=version.source,
        digests=run.digests,
    )
