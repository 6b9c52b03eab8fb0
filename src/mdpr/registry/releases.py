"""From a tuned model to a version in the registry, and from a version to the champion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mdpr.artifacts import (
    Promotion,
    Registration,
    class_digest,
    read_metrics,
    read_predictions,
    read_run,
    read_shots,
    sha256,
)
from mdpr.config import RegisterParams, TrackingParams
from mdpr.errors import ArtifactError, TrackingError
from mdpr.registry.aliases import CHAMPION, Registry, Version
from mdpr.registry.gate import Candidate, Decision, Policy, should_promote
from mdpr.registry.model_card import gate_of, model_card, with_gate
from mdpr.registry.served_model import Parts, log_served_model
from mdpr.tracking.lineage import flatten, lineage_tags
from mdpr.tracking.runs import RESULTS_FOLDER, add_results, adopt
from mdpr.tracking.store import Store, connect, explained

LABEL_SET_TAG = "mdpr.label_set"
TEST_SET_TAG = "mdpr.test_sha256"
PREDICTIONS_TAG = "mdpr.predictions_sha256"
RESULTS_RUN_TAG = "mdpr.results_run_id"  # the run whose artifacts hold the version's predictions
PREDICTIONS_FILE = "predictions.parquet"


def register(parts: Parts, evaluation: Path, tracking: TrackingParams, params: RegisterParams) -> Registration:
    """A version of the model in `parts` with its results, its card and the alias `params.alias`.

    The version that the same model digest already has is used again: its results, card and alias are renewed.
    Raises `TrackingError`, and `ArtifactError` where a part is missing.
    """
    digest, config, run = parts.digest(), parts.config, read_run(evaluation)
    metrics, predictions = read_metrics(evaluation), read_predictions(evaluation)
    store = connect()
    here = adopt(store, run, tracking)
    if here != run:  # neither training nor evaluation happened in this store: their results come along now
        files = sorted(path for path in evaluation.iterdir() if path.is_file())
        here = add_results(here, tracking, flatten({"test": metrics}), files)
    registry = Registry(store, tracking.model_name)
    with registry.locked():
        version = registry.with_digest(digest)
        if version is None:
            inputs = (parts.knowledge, parts.features, parts.model, evaluation)
            model_id = log_served_model(store, here, parts, Path(params.pyfunc))
            origin = {
                LABEL_SET_TAG: class_digest(config.class_names),
                "mdpr.backbone": config.fingerprint,
                "mdpr.knowledge_digest": config.knowledge_digest,
            }
            version = registry.create(model_id, here.run_id, digest, origin | lineage_tags(inputs))
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
    )


def promote(registration: Registration, evaluation: Path, policy: Policy) -> Promotion:
    """Ask the gate about the registered version and do as it says; the verdict goes onto the version, too.

    Raises `TrackingError` where the registry lacks what it should hold, or someone else promoted meanwhile.
    """
    store = connect()
    registry = Registry(store, registration.model_name)
    challenger = registry.get(registration.version)
    if challenger.tags.get(PREDICTIONS_TAG) != sha256(evaluation / PREDICTIONS_FILE):
        raise ArtifactError(f"{evaluation} is not what version {challenger.number} was registered with: run register")
    champion = registry.behind(CHAMPION)
    before = champion.number if champion else None
    if before == challenger.number:
        decision = Decision(False, f"version {before} is the champion already")
    else:
        decision = should_promote(
            _candidate(challenger, evaluation),
            _load_champion(store, champion) if champion else None,
            shot_groups(read_shots(evaluation)),
            policy,
        )
        if decision.promote:
            registry.move_champion(challenger.number, expected=before)
        _record(registry, challenger, decision)
    return Promotion(
        decision="promoted" if decision.promote else "kept",
        reason=decision.reason,
        model_name=registry.name,
        version=challenger.number,
        champion_before=before,
        champion_after=challenger.number if decision.promote else before,
        checks=decision.checks,
    )


def shot_groups(shots: Sequence[str]) -> dict[str, list[int]]:
    """Class indices of all, many, medium and few; `shots` is the group of each class in order of index."""
    groups: dict[str, list[int]] = {"all": list(range(len(shots)))}
    for index, shot in enumerate(shots):
        groups.setdefault(shot, []).append(index)
    return groups


def _candidate(version: Version, evaluation: Path) -> Candidate:
    label_set, test_set = (version.tags.get(tag, "not recorded") for tag in (LABEL_SET_TAG, TEST_SET_TAG))
    return Candidate(read_predictions(evaluation), label_set, test_set)


def _load_champion(store: Store, champion: Version) -> Candidate:
    """The champion's predictions, from the artifacts of the run that holds its results."""
    run_id = champion.tags.get(RESULTS_RUN_TAG, champion.run_id)
    with TemporaryDirectory(prefix="mdpr-") as folder:
        try:
            with explained(store.uri):
                file = store.client.download_artifacts(run_id, f"{RESULTS_FOLDER}/{PREDICTIONS_FILE}", folder)
        except TrackingError as error:
            raise TrackingError(
                f"the predictions of champion version {champion.number} cannot be read from run {run_id} "
                f"({error}): register that model again, or take the alias {CHAMPION} off it"
            ) from None
        return _candidate(champion, Path(file).parent)


def _record(registry: Registry, version: Version, decision: Decision) -> None:
    """The verdict as tags, and on the card."""
    verdict = "promoted" if decision.promote else "kept"
    tags = {"mdpr.gate.decision": verdict, "mdpr.gate.reason": decision.reason}
    registry.annotate(version.number, tags, with_gate(version.card, f"{verdict}: {decision.reason}"))
