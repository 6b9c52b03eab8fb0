"""Which version follows which as champion, decided by the store itself.

MLflow has no compare-and-set for aliases, but a run's parameter can be written once and by one writer alone. So
every change of champion is claimed first: parameter `champion.000007` of one run (the ledger, named by a tag of the
registered model) belongs to whoever writes it, and everybody else learns that they came too late. The alias follows
the claim; a claim whose owner died before that is finished by the next who comes.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from mdpr.errors import TrackingError
from mdpr.tracking.store import Store, explained

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
        with explained(self.store.uri):
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
        with explained(self.store.uri):
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
        with explained(self.store.uri):
            self.store.client.log_param(self.run_id, f"{claim.key}.done", "true")


def open_ledger(store: Store, name: str) -> Ledger:
    """The ledger of the registered model `name`."""
    with explained(store.uri):
        run_id = store.client.get_registered_model(name).tags.get(LEDGER_TAG)
    if not run_id:
        raise TrackingError(f"the registered model {name} has no tag {LEDGER_TAG}: run register again")
    return Ledger(store, run_id)


def ensure_model(store: Store, name: str, run_id: str) -> None:
    """The registered model `name` with its ledger, made where either is missing, in the experiment of `run_id`."""
    from mlflow.exceptions import MlflowException

    client = store.client
    with explained(store.uri):
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
