"""From a version in the registry to the champion, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mdpr.artifacts import Promotion, Registration, read_metrics, read_predictions, read_shots, sha256
from mdpr.errors import ArtifactError, TrackingError
from mdpr.mlops.gate import Candidate, Decision, Latency, Policy, should_promote
from mdpr.mlops.registry import CHAMPION, PREVIOUS, Registry, Version
from mdpr.mlops.releases import (
    LABEL_SET_TAG,
    LATENCY_DEVICE_TAG,
    LATENCY_TAG,
    PREDICTIONS_FILE,
    PREDICTIONS_TAG,
    RESULTS_RUN_TAG,
    TEST_SET_TAG,
    with_gate,
)
from mdpr.mlops.runs import RESULTS_FOLDER
from mdpr.mlops.store import Store, connect, translate_errors

ROLLED_BACK_TAG = "mdpr.rolled_back"


@dataclass(frozen=True)
class Judgement:
    """What the gate says about a version, and the champion it said so against. Nothing has been changed yet."""

    registry: Registry
    challenger: Version
    champion_before: str | None
    decision: Decision
    already_champion: bool

    def promotion(self) -> Promotion:
        """The judgement as promotion.json has it, as carried out."""
        decision = self.decision
        return Promotion(
            decision="promoted" if decision.promote else "kept",
            reason=decision.reason,
            model_name=self.registry.name,
            version=self.challenger.number,
            champion_before=self.champion_before,
            champion_after=self.challenger.number if decision.promote else self.champion_before,
            checks=decision.checks,
        )


def judge(registration: Registration, evaluation: Path, policy: Policy) -> Judgement:
    """Ask the gate about the registered version; changes nothing.

    Raises `TrackingError` where the registry lacks what it should hold, `ArtifactError` where `evaluation` is
    another model's.
    """
    store = connect()
    registry = Registry(store, registration.model_name)
    challenger = registry.get(registration.version)
    if challenger.tags.get(PREDICTIONS_TAG) != sha256(evaluation / PREDICTIONS_FILE):
        raise ArtifactError(f"{evaluation} is not what version {challenger.number} was registered with: run register")
    champion = registry.get_by_alias(CHAMPION)
    before = champion.number if champion else None
    if before == challenger.number:
        decision = Decision(False, f"version {before} is the champion already")
    elif ROLLED_BACK_TAG in challenger.tags:
        reason = f"version {challenger.number} was rolled back: take its tag {ROLLED_BACK_TAG} off to let it try again"
        decision = Decision(False, reason)
    else:
        decision = should_promote(
            _candidate(challenger, evaluation),
            _load_champion(store, champion) if champion else None,
            shot_groups(read_shots(evaluation)),
            policy,
        )
    return Judgement(registry, challenger, before, decision, already_champion=before == challenger.number)


def promote(registration: Registration, evaluation: Path, policy: Policy) -> Promotion:
    """Ask the gate and do as it says; the verdict goes onto the version and into the run of its results, too.

    Raises as `judge` does, and `TrackingError` where someone else promoted meanwhile.
    """
    judgement = judge(registration, evaluation, policy)
    promotion = judgement.promotion()
    if judgement.decision.promote:
        judgement.registry.move_champion(judgement.challenger.number, expected=judgement.champion_before)
    if not judgement.already_champion:
        _record(judgement, promotion)
    return promotion


def rollback(model_name: str) -> tuple[str, str]:
    """The champion back to the version behind `previous`: (the version that went, the one that is champion now).

    Raises `TrackingError` where there is no champion, none before it, or that one was rolled back itself.
    """
    registry = Registry(connect(), model_name)
    champion, previous = registry.get_by_alias(CHAMPION), registry.get_by_alias(PREVIOUS)
    if champion is None or previous is None:
        missing = CHAMPION if champion is None else PREVIOUS
        raise TrackingError(f"{model_name} has no version with the alias {missing}: there is nothing to go back to")
    if previous.number == champion.number or ROLLED_BACK_TAG in previous.tags:
        raise TrackingError(
            f"version {previous.number} of {model_name} ({PREVIOUS}) was itself rolled back or is the champion: "
            f"move the alias {CHAMPION} by hand"
        )
    registry.move_champion(previous.number, expected=champion.number)
    reason = f"rolled back to version {previous.number}"
    registry.annotate(champion.number, {ROLLED_BACK_TAG: previous.number}, with_gate(champion.card, reason))
    return champion.number, previous.number


def shot_groups(shots: Sequence[str]) -> dict[str, list[int]]:
    """Class indices of all, many, medium and few; `shots` is the group of each class in order of index."""
    groups: dict[str, list[int]] = {"all": list(range(len(shots)))}
    for index, shot in enumerate(shots):
        groups.setdefault(shot, []).append(index)
    return groups


def _candidate(version: Version, evaluation: Path) -> Candidate:
    tags = version.tags
    ece = read_metrics(evaluation)["fused"].get("ece")
    if ece is None:
        raise ArtifactError(f"{evaluation / 'metrics.json'} has no fused.ece: run evaluate again")
    measured = LATENCY_TAG in tags and LATENCY_DEVICE_TAG in tags
    return Candidate(
        predictions=read_predictions(evaluation),
        label_set=tags.get(LABEL_SET_TAG, "not recorded"),
        test_set=tags.get(TEST_SET_TAG, "not recorded"),
        ece=ece,
        latency=Latency(float(tags[LATENCY_TAG]), tags[LATENCY_DEVICE_TAG]) if measured else None,
    )


def _load_champion(store: Store, champion: Version) -> Candidate:
    """The champion's predictions and metrics, from the artifacts of the run that holds its results."""
    run_id = champion.tags.get(RESULTS_RUN_TAG, champion.run_id)
    with TemporaryDirectory(prefix="mdpr-") as folder:
        try:
            with translate_errors(store.uri):
                for name in (PREDICTIONS_FILE, "metrics.json"):
                    file = store.client.download_artifacts(run_id, f"{RESULTS_FOLDER}/{name}", folder)
            if sha256(Path(file).with_name(PREDICTIONS_FILE)) != champion.tags.get(PREDICTIONS_TAG):
                raise TrackingError("they are not what it was registered with")
        except TrackingError as error:
            raise TrackingError(
                f"the predictions of champion version {champion.number} cannot be used from run {run_id} "
                f"({error}): register that model again, or take the alias {CHAMPION} off it"
            ) from None
        return _candidate(champion, Path(file).parent)


def _record(judgement: Judgement, promotion: Promotion) -> None:
    """The verdict as tags and on the card of the version, and beside the report in the run's artifacts."""
    registry, version = judgement.registry, judgement.challenger
    checks = json.dumps([check.model_dump() for check in promotion.checks])
    tags = {
        "mdpr.gate.decision": promotion.decision,
        "mdpr.gate.reason": promotion.reason,
        "mdpr.gate.checks": checks,
    }
    registry.annotate(version.number, tags, with_gate(version.card, f"{promotion.decision}: {promotion.reason}"))
    with translate_errors(registry.store.uri):
        run_id = version.tags.get(RESULTS_RUN_TAG, version.run_id)
        registry.store.client.log_dict(run_id, promotion.model_dump(mode="json"), f"{RESULTS_FOLDER}/promotion.json")
