"""Which version follows which as champion, decided by the store itself.

MLflow has no compare-and-set for aliases, but a run's parameter can be written once and by one writer alone. So
every change of champion is claimed first: parameter `champion.000007` of one run (the ledger, named by a tag of the
registered model) belongs to whoever writes it, and everybody else learns that they came too late. The alias follows
the claim; a claim whose owner died before that is finished by the next who comes.

The MLflow model registry: versions, their tags and cards, and the aliases. Nothing else talks to it.

Aliases: `challenger` (by default) is the version registered last, `champion` the one that serves, `previous`
the champion before it. An alias points to one version, so there is never more than one champion. Of those who
want to move it at the same time one gets the claim (see `mdpr.mlops.registry`), the others are told.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mdpr.errors import TrackingError
from mdpr.mlops.store import Store, translate_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


LEDGER_TAG = "mdpr.succession_run_id"
NOTE = "Every change of champion, in order: a parameter is written once. Do not delete this run."


@dataclass(frozen=True)
class Claim:
    """A change of champion. `finished` once the alias has been set: from then on the alias itself counts."""

    generation: int
    number: str
    before: str | None
    finished: bool

    @property
    def key(self) -> str:
        return f"champion.{self.generation:06d}"


@dataclass(frozen=True)
class Ledger:
    """The run that holds the claims of one registered model. Every method raises `TrackingError`."""

    store: Store
    run_id: str

    def last(self) -> Claim | None:
        with translate_errors(self.store.uri):
            params = self.store.client.get_run(self.run_id).data.params
        keys = [key for key in params if key.removeprefix("champion.").isdigit()]
        if not keys:
            return None
        key = max(keys)
        content = json.loads(params[key])
        generation = int(key.removeprefix("champion."))
        return Claim(generation, content["to"], content["from"], finished=f"{key}.done" in params)

    def claim(self, after: Claim | None, number: str, before: str | None) -> Claim | None:
        """The claim that follows `after`; None where someone else was faster."""
        from mlflow.exceptions import MlflowException

        claim = Claim(after.generation + 1 if after else 1, number, before, finished=False)
        mine = json.dumps({"to": number, "from": before, "by": uuid.uuid4().hex})
        with translate_errors(self.store.uri):
            try:
                self.store.client.log_param(self.run_id, claim.key, mine)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                # Taken; by ourselves, where an answer was lost and the request sent again.
                run = self.store.client.get_run(self.run_id)
                if run.info.lifecycle_stage != "active":
                    raise TrackingError(f"run {self.run_id} (the ledger of champions) is deleted: restore it") from None
                return claim if run.data.params.get(claim.key) == mine else None
        return claim

    def finish(self, claim: Claim) -> None:
        with translate_errors(self.store.uri):
            self.store.client.log_param(self.run_id, f"{claim.key}.done", "true")


def open_ledger(store: Store, name: str) -> Ledger:
    """The ledger of the registered model `name`."""
    with translate_errors(store.uri):
        run_id = store.client.get_registered_model(name).tags.get(LEDGER_TAG)
    if not run_id:
        raise TrackingError(f"the registered model {name} has no tag {LEDGER_TAG}: run register again")
    return Ledger(store, run_id)


def ensure_model(store: Store, name: str, run_id: str) -> None:
    """The registered model `name` with its ledger, made where either is missing, in the experiment of `run_id`."""
    from mlflow.exceptions import MlflowException

    client = store.client
    with translate_errors(store.uri):
        found = client.search_registered_models(f"name = '{name}'")
        if found and LEDGER_TAG in found[0].tags:
            return
        experiment_id = client.get_run(run_id).info.experiment_id
        tags = {"mlflow.note.content": NOTE, "mdpr.succession_of": name}
        ledger_id = client.create_run(experiment_id, run_name=f"champions of {name}", tags=tags).info.run_id
        client.set_terminated(ledger_id)
        if found:  # made by hand, without one
            client.set_registered_model_tag(name, LEDGER_TAG, ledger_id)
            return
        try:
            client.create_registered_model(name, tags={LEDGER_TAG: ledger_id})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            client.delete_run(ledger_id)  # someone else's first version was faster, and theirs is the ledger


CHAMPION = "champion"
PREVIOUS = "previous"
DIGEST_TAG = "mdpr.model_digest"
LOCK_TIMEOUT_S = 300.0
POINT_ATTEMPTS = 5
LOCK_POLL_S = 0.05


@dataclass(frozen=True)
class Version:
    """A registered version as this project sees it; `number` is text, as every MLflow store takes it."""

    name: str
    number: str
    run_id: str
    source: str
    card: str
    created_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Registry:
    """One registered model's versions in one store. Every method raises `TrackingError`."""

    store: Store
    name: str

    def get(self, number: str) -> Version:
        """The version `number`, which must be there."""
        found = self._ask("get_model_version", self.name, number)
        if found is None:
            raise TrackingError(
                f"version {number} of {self.name} is not in this MLflow registry: "
                "run register again (dvc repro --force --single-item register)"
            )
        return found

    def get_by_alias(self, alias: str) -> Version | None:
        """The version that `alias` points to, if it points to any."""
        return self._ask("get_model_version_by_alias", self.name, alias)

    def find_by_digest(self, digest: str) -> Version | None:
        """The first version of the model with this digest, if there is one."""
        with translate_errors(self.store.uri):
            query = f"name = '{self.name}' and tags.`{DIGEST_TAG}` = '{digest}'"
            found = self.store.client.search_model_versions(query)
        return min(map(_as_version, found), key=lambda version: int(version.number), default=None)

    def versions(self) -> list[Version]:
        """Every version, the newest first; none where the model is not there."""
        with translate_errors(self.store.uri):
            found = self.store.client.search_model_versions(f"name = '{self.name}'")
        return sorted(map(_as_version, found), key=lambda version: -int(version.number))

    def aliases(self) -> dict[str, str]:
        """Alias -> number of the version behind it; none where the model is not there."""
        with translate_errors(self.store.uri):
            found = self.store.client.search_registered_models(f"name = '{self.name}'")
        return {alias: str(number) for alias, number in found[0].aliases.items()} if found else {}

    def create(self, model_id: str, run_id: str, digest: str, tags: Mapping[str, str]) -> Version:
        """A new version of a logged model, or the one that someone else made of the same digest meanwhile."""
        client = self.store.client
        ensure_model(self.store, self.name, run_id)
        with translate_errors(self.store.uri):
            made = client.create_model_version(
                self.name,
                f"models:/{model_id}",
                run_id,
                tags={**tags, DIGEST_TAG: digest},
                model_id=model_id,  # a server takes the source only with it
            )
            first = self.find_by_digest(digest) or _as_version(made)
            if first.number != str(made.version):
                client.delete_model_version(self.name, str(made.version))
        return first

    def annotate(self, number: str, tags: Mapping[str, str], card: str) -> None:
        """Set tags and the description of a version."""
        with translate_errors(self.store.uri):
            for key, value in tags.items():
                self.store.client.set_model_version_tag(self.name, number, key, value)
            self.store.client.update_model_version(self.name, number, card)

    def set_alias(self, alias: str, number: str) -> None:
        """Let `alias` name this version."""
        from mlflow.exceptions import MlflowException

        with translate_errors(self.store.uri):
            for attempt in range(POINT_ATTEMPTS):
                try:
                    self.store.client.set_registered_model_alias(self.name, alias, number)
                    return
                except MlflowException as error:
                    # A server that looks, then inserts, answers so where another process set the same alias in between.
                    if error.error_code != "BAD_REQUEST" or attempt == POINT_ATTEMPTS - 1:
                        raise

    def move_champion(self, number: str, expected: str | None) -> None:
        """`champion` to `number`, if it is still at `expected`; the old champion becomes `previous`.

        Raises `TrackingError` that names the other version where someone else has moved it meanwhile.
        """
        with self.locked():
            ledger = open_ledger(self.store, self.name)
            last = ledger.last()
            if last and not last.finished:  # its owner is about to set the alias, or died before it could
                self._follow(ledger, last)
            self._require_champion(expected)
            claim = ledger.claim(last, number, expected)
            if claim is None:
                winner = ledger.last()
                raise self._overtaken(winner.number if winner else None, expected)
            self._follow(ledger, claim)

    def _follow(self, ledger: Ledger, claim: Claim) -> None:
        """The aliases as the claim says, and as a later one says where this process was overtaken meanwhile."""
        while True:
            if claim.before:
                self.set_alias(PREVIOUS, claim.before)
            self.set_alias(CHAMPION, claim.number)
            ledger.finish(claim)
            newest = ledger.last()
            if newest is None or newest.generation == claim.generation:
                return
            claim = newest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the registry, where the store is a local file; a server has no lock to offer."""
        if self.store.file is None:
            yield
            return
        import fcntl

        lock = self.store.file.with_name(f"{self.store.file.name}.lock")
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        with lock.open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:
                        raise TrackingError(f"{lock} is held by another process: let it finish") from None
                    time.sleep(LOCK_POLL_S)
            yield  # closing the file gives the lock back

    def _require_champion(self, number: str | None) -> None:
        now = self.get_by_alias(CHAMPION)
        found = now.number if now else None
        if found != number:
            raise self._overtaken(found, number)

    def _overtaken(self, found: str | None, expected: str | None) -> TrackingError:
        return TrackingError(
            f"the champion of {self.name} is version {found or 'none'}, not {expected or 'none'}: "
            "someone else promoted at the same time, run promote again"
        )

    def _ask(self, method: str, *arguments: str) -> Version | None:
        """MLflow's answer about one version; None where it says that there is no such thing."""
        from mlflow.exceptions import MlflowException

        with translate_errors(self.store.uri):
            try:
                return _as_version(getattr(self.store.client, method)(*arguments))
            except MlflowException as error:
                # A missing model or version is the one, a missing alias the other.
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise


def _as_version(found: ModelVersion) -> Version:
    return Version(
        name=found.name,
        number=str(found.version),
        run_id=found.run_id or "",
        source=found.source,
        card=found.description or "",
        created_ms=int(found.creation_timestamp),
        tags=dict(found.tags),
    )
