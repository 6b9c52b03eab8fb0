"""MLflow tracking: the run that `tune` opens and the results that `evaluate` adds to it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdpr.artifacts import TrackedRun
from mdpr.config import TrackingParams
from mdpr.errors import TrackingError
from mdpr.tracking.lineage import flatten, lineage_tags
from mdpr.tracking.store import Store, connect, explained

if TYPE_CHECKING:
    from mlflow.entities import Metric

__all__ = ["OpenRun", "add_results", "adopt", "flatten", "holds_run", "lineage_tags", "open_run"]

logger = logging.getLogger(__name__)

ORIGINAL_RUN_TAG = "mdpr.original_run_id"
RESULTS_FOLDER = "evaluation"  # where a run's artifacts hold predictions.parquet, report.html and so on
ARTIFACT_FOLDER = "mlruns"
VALUES_PER_REQUEST = 100  # MLflow takes 100 parameters or 1,000 metrics in one log_batch


@dataclass
class OpenRun:
    """A run while it is open. Values that cannot be delivered wait here and go with the next epoch's."""

    store: Store
    tracked: TrackedRun
    _waiting: list[Metric] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return self.tracked.run_id

    def log_epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """All values of one epoch in one request. A store that is away is a warning: training goes on."""
        self._waiting += _as_metrics(metrics, epoch)
        try:
            self._deliver()
        except TrackingError as error:
            logger.warning("%s; %d values wait for the next epoch", error, len(self._waiting))

    def close(self, status: str) -> None:
        """The rest of the values, then the status. What fails here must not cost the user a trained model."""
        try:
            self._deliver()
            with explained(self.store.uri):
                self.store.client.set_terminated(self.run_id, status)
        except TrackingError as error:
            logger.error("%s; run %s stays open and lacks %d values", error, self.run_id, len(self._waiting))

    def _deliver(self) -> None:
        # A value keeps the time it was made at, and MLflow stores one value a time and step: sending a batch
        # again after a lost answer does no harm.
        _log_metrics(self.store, self.run_id, self._waiting)
        self._waiting.clear()


@contextmanager
def open_run(
    tracking: TrackingParams, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Iterator[OpenRun]:
    """A new run with flat `params` and `tags`; it ends FINISHED, FAILED on an exception, KILLED on Ctrl-C.

    Raises `TrackingError` where the store cannot be reached: before the work, not after it.
    """
    store = connect()
    run = OpenRun(store, _create_run(store, tracking, name, tags))
    _log_params(store, run.run_id, params)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.close(status)


def add_results(
    run: TrackedRun, tracking: TrackingParams, metrics: Mapping[str, float], files: Sequence[Path]
) -> TrackedRun:
    """Add `metrics` and `files` (artifacts below evaluation/) to `run`; returns the run that now holds them.

    That is a new one where this store does not hold `run` (see `adopt`). Raises `TrackingError`.
    """
    store = connect()
    here = adopt(store, run, tracking)
    _log_metrics(store, here.run_id, _as_metrics(metrics, step=0))
    with explained(store.uri):
        for file in files:
            store.client.log_artifact(here.run_id, str(file), RESULTS_FOLDER)
        if store.client.get_run(here.run_id).info.status == "RUNNING":  # new, or its end could not be delivered
            store.client.set_terminated(here.run_id)
    return here


def adopt(store: Store, run: TrackedRun, tracking: TrackingParams) -> TrackedRun:
    """`run` where this store holds it, otherwise the run that stands in for it here, made on first use.

    A model out of a teammate's DVC cache names a run of the teammate's store. Raises `TrackingError`.
    """
    client = store.client
    if holds_run(store, run.run_id):
        return run
    with explained(store.uri):
        experiment = client.get_experiment_by_name(tracking.experiment)
        query = f"tags.`{ORIGINAL_RUN_TAG}` = '{run.run_id}'"
        stand_ins = client.search_runs([experiment.experiment_id], query) if experiment else []
    if stand_ins:
        return TrackedRun(run_id=stand_ins[0].info.run_id, experiment=tracking.experiment)
    here = _create_run(store, tracking, f"from-{run.run_id[:8]}", {ORIGINAL_RUN_TAG: run.run_id})
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


def _create_run(store: Store, tracking: TrackingParams, name: str, tags: Mapping[str, str]) -> TrackedRun:
    with explained(store.uri):
        experiment_id = _experiment_id(store, tracking.experiment)
        created = store.client.create_run(experiment_id, run_name=name, tags=dict(tags))
    return TrackedRun(run_id=created.info.run_id, experiment=tracking.experiment)


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


def _as_metrics(metrics: Mapping[str, float], step: int) -> list[Metric]:
    """MLflow's names take letters, digits, spaces and _ - . / : alone."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(re.sub(r"[^\w\-./: ]", "_", key), float(value), now_ms, step) for key, value in metrics.items()]


def _log_metrics(store: Store, run_id: str, metrics: Sequence[Metric]) -> None:
    with explained(store.uri):
        for start in range(0, len(metrics), VALUES_PER_REQUEST):
            store.client.log_batch(run_id, metrics=metrics[start : start + VALUES_PER_REQUEST])


def _log_params(store: Store, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    values = [Param(key, str(value)) for key, value in params.items()]
    with explained(store.uri):
        for start in range(0, len(values), VALUES_PER_REQUEST):
            store.client.log_batch(run_id, params=values[start : start + VALUES_PER_REQUEST])
