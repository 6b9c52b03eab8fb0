"""From a version in the registry to the champion, and back.

The promotion log holds which version followed which as champion. MLflow has no compare-and-set for aliases, but a run's
parameter can be written once and by one writer only. So every change of champion is reserved first: parameter
`champion.000007` of one run (the log, named by a tag of the registered model) belongs to whoever writes it, and
everybody else is refused. The alias follows the reservation; a reservation whose process died before that is carried
out by the next promotion.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mdpr.artifacts import Promotion, Registration, read_class_names, read_predictions, read_shots
from mdpr.errors import ArtifactError, TrackingError
from mdpr.mlops.champion import TestSet, load_champion, time_versions
from mdpr.mlops.gate import Candidate, Decision, Policy, describe, should_promote
from mdpr.mlops.registry import (
    CHAMPION,
    CHECKS_TAG,
    DECISION_TAG,
    PREVIOUS,
    PROMOTION_LOG_TAG,
    ROLLED_BACK_TAG,
    Registry,
    Version,
    find_champion,
)
from mdpr.mlops.releases import changed_input, with_gate
from mdpr.mlops.runs import RESULTS_FOLDER
from mdpr.mlops.store import Refused, Store, connect

if TYPE_CHECKING:
    from rich.table import Table

UNREGISTERED = (
    "the model of a DVC experiment has no version yet: run `dvc repro --force --single-item register promote`"
)


# --- the gate -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """The gate's decision about a version, and the champion it was compared with. Nothing has been changed yet."""

    registry: Registry
    challenger: Version
    champion_before: str | None
    decision: Decision

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


def judge(
    registration: Registration, evaluation: Path, prepared: Path, policy: Policy, checkpoint: Path | None = None
) -> Judgement:
    """The gate's decision about the registered version. `prepared` holds the test images of `evaluation`.

    No tag and no alias changes. With a `checkpoint` (see `load_champion`) answers of the champion are kept.
    Raises `TrackingError` if the registry lacks what it should hold, `ArtifactError` if a file of `evaluation` that
    the gate reads is not the one that was registered.
    """
    if registration.version is None:
        raise TrackingError(UNREGISTERED)
    store = connect()
    registry = Registry(store, registration.model_name)
    challenger = registry.get(registration.version)
    if changed := changed_input(challenger, evaluation):
        raise ArtifactError(
            f"{evaluation / changed} is not what version {challenger.number} was registered with: run evaluate and "
            "register again"
        )
    champion = registry.get_by_alias(CHAMPION)
    before = champion.number if champion else None
    if before == challenger.number:
        decision = Decision(False, f"version {before} is the champion already")
    elif ROLLED_BACK_TAG in challenger.tags:
        reason = f"version {challenger.number} was rolled back: remove its tag {ROLLED_BACK_TAG} to let it try again"
        decision = Decision(False, reason)
    else:
        predictions, shots = read_predictions(evaluation), read_shots(evaluation)
        candidate = Candidate(predictions, read_class_names(evaluation))
        test = TestSet(predictions, prepared)
        opponent = load_champion(store, champion, test, checkpoint) if champion else None
        if policy.judges_latency(first=champion is None):
            ms_RM = time_versions([version.address for version in (challenger, champion) if version])
            candidate = replace(candidate, latency_R=ms_RM[:, 0])
            opponent = opponent and replace(opponent, latency_R=ms_RM[:, 1])
        decision = should_promote(candidate, opponent, shot_groups(shots), policy)
    return Judgement(registry, challenger, before, decision)


def promote(
    registration: Registration, evaluation: Path, prepared: Path, policy: Policy, checkpoint: Path
) -> Promotion:
    """Carry out the gate's decision; it is written onto the version and into the run of its results, too.

    The model of a DVC experiment that was not registered is not judged.
    Raises as `judge` does, and `TrackingError` if someone else promoted meanwhile.
    """
    if registration.version is None:
        champion = find_champion(registration.model_name)
        number = champion.number if champion else None
        return Promotion(
            decision="kept",
            reason=UNREGISTERED,
            model_name=registration.model_name,
            version=None,
            champion_before=number,
            champion_after=number,
            checks=(),
        )
    judgement = judge(registration, evaluation, prepared, policy, checkpoint)
    promotion = judgement.promotion()
    if judgement.decision.promote:
        move_champion(judgement.registry, judgement.challenger.number, expected=judgement.champion_before)
    if judgement.challenger.number != judgement.champion_before:
        _record(judgement, promotion)
    return promotion


def rollback(model_name: str) -> tuple[str, str]:
    """The champion back to the version with the alias `previous`: (the version that went, the champion now).

    Raises `TrackingError` if there is no champion, none before it, or that one was rolled back itself.
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
    move_champion(registry, previous.number, expected=champion.number)
    reason = f"rolled back to version {previous.number}"
    registry.annotate(champion.number, {ROLLED_BACK_TAG: previous.number}, with_gate(champion.card, reason))
    return champion.number, previous.number


def shot_groups(shots: Sequence[str]) -> dict[str, list[int]]:
    """Class indices of all, many, medium and few; `shots` is the group of each class in order of index."""
    groups: dict[str, list[int]] = {"all": list(range(len(shots)))}
    for index, shot in enumerate(shots):
        groups.setdefault(shot, []).append(index)
    return groups


def _record(judgement: Judgement, promotion: Promotion) -> None:
    """The decision as tags and on the card of the version, and beside the report in the run's artifacts."""
    registry, version = judgement.registry, judgement.challenger
    checks = json.dumps([check.model_dump() for check in promotion.checks])
    figures = "".join(f"\n- {describe(check)}" for check in promotion.checks)
    card = with_gate(version.card, f"{promotion.decision}: {promotion.reason}\n{figures}")
    registry.annotate(version.number, {DECISION_TAG: promotion.decision, CHECKS_TAG: checks}, card)
    content = promotion.model_dump(mode="json")
    registry.store.client.log_dict(version.results_run_id, content, f"{RESULTS_FOLDER}/promotion.json")


def checks_table(promotion: Promotion) -> Table:
    """The gate's checks for a terminal."""
    from rich.table import Table

    champion = promotion.champion_before or "none"
    table = Table(title=f"Gate: version {promotion.version or 'none'} of {promotion.model_name}, champion {champion}")
    for column in ("check", "measured", "judged", "must be", "passed"):
        table.add_column(column, justify="left" if column in ("check", "must be") else "right")
    for check in promotion.checks:
        bound = f"{check.passes} {check.threshold:g}"
        table.add_row(check.name, f"{check.estimate:.2f}", f"{check.value:.2f}", bound, "yes" if check.passed else "no")
    return table


# --- the promotion log --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reservation:
    """A change of champion. `finished` once the alias has been set: from then on the alias itself counts."""

    generation: int
    number: str
    before: str | None
    finished: bool

    @property
    def key(self) -> str:
        return f"champion.{self.generation:06d}"


@dataclass(frozen=True)
class PromotionLog:
    """The run that holds the reservations of one registered model. Every method raises `TrackingError`."""

    store: Store
    run_id: str

    def last(self) -> Reservation | None:
        """The newest reservation, None if there is none."""
        params = self.store.client.get_run(self.run_id).data.params
        keys = [key for key in params if key.removeprefix("champion.").isdigit()]
        if not keys:
            return None
        key = max(keys)
        content = json.loads(params[key])
        generation = int(key.removeprefix("champion."))
        return Reservation(generation, content["to"], content["from"], finished=f"{key}.done" in params)

    def reserve(self, after: Reservation | None, number: str, before: str | None) -> Reservation | None:
        """The reservation that follows `after`; None if someone else was faster."""
        reservation = Reservation(after.generation + 1 if after else 1, number, before, finished=False)
        mine = json.dumps({"to": number, "from": before, "by": uuid.uuid4().hex})
        try:
            self.store.client.log_param(self.run_id, reservation.key, mine)
        except Refused:
            # Taken; by ourselves, if an answer was lost and the request sent again.
            run = self.store.client.get_run(self.run_id)
            if run.info.lifecycle_stage != "active":
                raise TrackingError(f"run {self.run_id} (the promotion log) is deleted: restore it") from None
            return reservation if run.data.params.get(reservation.key) == mine else None
        return reservation

    def finish(self, reservation: Reservation) -> None:
        """Note that the alias follows the reservation."""
        self.store.client.log_param(self.run_id, f"{reservation.key}.done", "true")


def open_log(registry: Registry) -> PromotionLog:
    """The promotion log of the registered model."""
    run_id = registry.store.client.get_registered_model(registry.name).tags.get(PROMOTION_LOG_TAG)
    if not run_id:
        raise TrackingError(f"the registered model {registry.name} has no tag {PROMOTION_LOG_TAG}: run register again")
    return PromotionLog(registry.store, run_id)


def move_champion(registry: Registry, number: str, expected: str | None) -> None:
    """`champion` to `number`, if it is still at `expected`; the old champion becomes `previous`.

    Raises `TrackingError` that names the other version if someone else has moved it meanwhile.
    """
    with registry.locked():
        log = open_log(registry)
        last = log.last()
        if last and not last.finished:  # its process is about to set the alias, or died before it could
            _carry_out(registry, log, last)
        champion = registry.get_by_alias(CHAMPION)
        now = champion.number if champion else None
        if now != expected:
            raise _overtaken(registry, now, expected)
        reservation = log.reserve(last, number, expected)
        if reservation is None:
            winner = log.last()
            raise _overtaken(registry, winner.number if winner else None, expected)
        _carry_out(registry, log, reservation)


def _carry_out(registry: Registry, log: PromotionLog, reservation: Reservation) -> None:
    """The aliases as the reservation says, and as a later one says if this process was overtaken meanwhile."""
    while True:
        if reservation.before:
            registry.set_alias(PREVIOUS, reservation.before)
        registry.set_alias(CHAMPION, reservation.number)
        log.finish(reservation)
        newest = log.last()
        if newest is None or newest.generation == reservation.generation:
            return
        reservation = newest


def _overtaken(registry: Registry, found: str | None, expected: str | None) -> TrackingError:
    return TrackingError(
        f"the champion of {registry.name} is version {found or 'none'}, not {expected or 'none'}: "
        "someone else promoted at the same time, run promote again"
    )
