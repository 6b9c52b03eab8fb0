"""Runs and experiments of the store: made where they are missing, stood in for where they belong to another store."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError
from mdpr.tracking.store import Store, explained

logger = logging.getLogger(__name__)

ORIGINAL_RUN_TAG = "mdpr.original_run_id"
ARTIFACT_FOLDER = "mlruns"


def adopt(store: Store, run: TrackedRun, experiment: str) -> TrackedRun:
    """`run` where this store holds it, otherwise the run of `experiment` that stands in for it, made on first use.

    A model out of a teammate's DVC cache names a run of the teammate's store. Raises `TrackingError`.
    """
    client = store.client
    if holds_run(store, run.run_id):
        return run
    with explained(store.uri):
        found = client.get_experiment_by_name(experiment)
        query = f"tags.`{ORIGINAL_RUN_TAG}` = '{run.run_id}'"
        stand_ins = client.search_runs([found.experiment_id], query) if found else []
    if stand_ins:
        return TrackedRun(run_id=stand_ins[0].info.run_id, experiment=experiment)
    here = create_run(store, experiment, f"from-{run.run_id[:8]}", {ORIGINAL_RUN_TAG: run.run_id})
    logger.warning("run %s is not in this MLflow store: its results go to the new run %s", run.run_id, here.run_id)
    return here


def holds_run(store: Store, run_id: str) -> bool:
    """Whether the store has this run, not deleted; raises `TrackingError` where it cannot be asked."""
    from mlflow.exceptions import MlflowException

    with explained(store.uri):
        try:
            return bool(store.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise


def create_run(store: Store, experiment: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
    """A new run of the experiment with this name; raises `TrackingError`."""
    with explained(store.uri):
        experiment_id = _experiment_id(store, experiment)
        created = store.client.create_run(experiment_id, run_name=name, tags=dict(tags))
    return TrackedRun(run_id=created.info.run_id, experiment=experiment)


def _experiment_id(store: Store, name: str) -> str:
    """The id of an experiment, made where there is none yet."""
    from mlflow.exceptions import MlflowException

    found = store.client.get_experiment_by_name(name)
    if found is None:
        # Beside the sqlite file, not in the folder that the process happens to work in; a server knows its own.
        folder = store.file and str(store.file.absolute().parent / ARTIFACT_FOLDER)
        try:
            return str(store.client.create_experiment(name, artifact_location=folder))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # someone else's first run was faster
                raise
            found = store.client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"the experiment {name} is deleted: restore it or set tracking.experiment")
    return str(found.experiment_id)
