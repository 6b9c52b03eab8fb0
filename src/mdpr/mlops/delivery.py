"""Runs and experiments of the store: made where they are missing, stood in for where they belong to another store.

From the entries of a journal to requests to MLflow, each of a kind that may be sent twice and is kept once.

params      {name: text}                      a parameter can be written once, and again with the same value
tags        {name: text}
metrics     [[name, value, time_ms, step]]    MLflow keeps one value a name, time and step
datasets    [{dataset, context}]              kept once a name and digest
file        artifact path                     overwritten by itself
opened      time_ms                           the run is running
status      [status, time_ms]                 the run has ended

The next contact: what earlier processes left in the spool goes to the store it was meant for.

Runs that a killed process left open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError
from mdpr.mlops.spool import CLOSED, HEADER, Entry, Journal, journals, open_journal
from mdpr.mlops.store import Store, Unreachable, connect, translate_errors

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
    with translate_errors(store.uri):
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

    with translate_errors(store.uri):
        try:
            return bool(store.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise


def create_run(store: Store, experiment: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
    """A new run of the experiment with this name; raises `TrackingError`."""
    with translate_errors(store.uri):
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


METRICS_PER_REQUEST = 1000  # what MLflow takes in one log_batch
PARAMS_PER_REQUEST = 100


def deliver(store: Store, journal: Journal, run_id: str) -> int:
    """Send what waits in `journal` to the run `run_id`; the number of entries sent.

    Raises `Unreachable` where the store is away: what it has taken by then is acknowledged, the rest still waits.
    """
    sent = 0
    for kind, group in groupby(journal.pending, key=lambda entry: entry.kind):
        entries = list(group)
        with translate_errors(store.uri):
            DELIVERIES[kind](store, journal, run_id, entries)
        journal.acknowledge(entries[-1].number)
        sent += len(entries)
    return sent


def _metrics(store: Store, journal: Journal, run_id: str, entries: Sequence[Entry]) -> None:
    from mlflow.entities import Metric

    values = [Metric(name, value, time_ms, step) for entry in entries for name, value, time_ms, step in entry.content]
    for start in range(0, len(values), METRICS_PER_REQUEST):
        store.client.log_batch(run_id, metrics=values[start : start + METRICS_PER_REQUEST])


def _params(store: Store, journal: Journal, run_id: str, entries: Sequence[Entry]) -> None:
    from mlflow.entities import Param

    values = [Param(name, text) for entry in entries for name, text in entry.content.items()]
    for start in range(0, len(values), PARAMS_PER_REQUEST):
        store.client.log_batch(run_id, params=values[start : start + PARAMS_PER_REQUEST])


def _tags(store: Store, journal: Journal, run_id: str, entries: Sequence[Entry]) -> None:
    from mlflow.entities import RunTag

    values = [RunTag(name, text) for entry in entries for name, text in entry.content.items()]
    for start in range(0, len(values), PARAMS_PER_REQUEST):
        store.client.log_batch(run_id, tags=values[start : start + PARAMS_PER_REQUEST])


def _datasets(store: Store, journal: Journal, run_id: str, entries: Sequence[Entry]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = [
        DatasetInput(Dataset(**item["dataset"]), tags=[InputTag(MLFLOW_DATASET_CONTEXT, item["context"])])
        for entry in entries
        for item in entry.content
    ]
    store.client.log_inputs(run_id, datasets=inputs)


def _files(store: Store, journal: Journal, run_id: str, entries: Sequence[Entry]) -> None:
    for target in dict.fromkeys(entry.content for entry in entries):
        folder = PurePosixPath(target).parent.as_posix()
        store.client.log_artifact(run_id, str(journal.files_folder / target), None if folder == "." else folder)


def _opened(store: Store, journal: Journal, run_id: str, entries: Sequence[Entry]) -> None:
    store.client.update_run(run_id, status="RUNNING")


def _status(store: Store, journal: Journal, run_id: str, entries: Sequence[Entry]) -> None:
    status, time_ms = entries[-1].content
    store.client.set_terminated(run_id, status, end_time=time_ms)


def _nothing(store: Store, journal: Journal, run_id: str, entries: Sequence[Entry]) -> None:
    """The first line says which run and which store the journal is for."""


DELIVERIES: dict[str, Callable[[Store, Journal, str, Sequence[Entry]], Any]] = {
    HEADER: _nothing,
    "metrics": _metrics,
    "params": _params,
    "tags": _tags,
    "datasets": _datasets,
    "file": _files,
    "opened": _opened,
    "status": _status,
}


REFUSED_SUFFIX = ".refused"


def start_journal(store: Store, folder: Path, run: TrackedRun) -> Journal:
    """The journal of `run`, for `store`; raises `TrackingError` where another process writes to the run."""
    journal = open_journal(folder, run.run_id)
    if journal is None:
        raise TrackingError(f"run {run.run_id} is being written by another process: let it finish")
    if not journal.entries:
        header = {"store": store.address, "run_id": run.run_id, "experiment": run.experiment}
        journal.append(HEADER, header)
    return journal


def flush(store: Store, folder: Path, besides: str | None = None) -> int:
    """Deliver what waits in `folder` for `store`, but for the run `besides`; the number of entries delivered.

    A run whose process was killed ends KILLED, when its last value was made. What the store refuses for good is
    kept as `*.refused`, with a warning. Raises `Unreachable` where the store is away: nothing is lost.
    """
    delivered = 0
    for journal in journals(folder):
        if journal.run_id == besides:
            continue
        header = journal.entries[0].content if journal.entries else None
        if header is None:  # killed before its first line was whole
            journal.remove()
            continue
        if header["store"] != store.address:
            logger.info("%s waits for MLflow at %s", journal.path, header["store"])
            continue
        if journal.abandoned:
            journal.append(CLOSED, ["KILLED", _last_time_ms(journal)])
        try:
            run = TrackedRun(run_id=header["run_id"], experiment=header["experiment"])
            here = adopt(store, run, run.experiment)
            delivered += deliver(store, journal, here.run_id)
        except Unreachable:
            raise
        except TrackingError as error:
            kept = journal.path.rename(journal.path.with_name(journal.path.name + REFUSED_SUFFIX))
            logger.warning("%s; what it refused is kept in %s", error, kept)
            continue
        journal.remove()
    if delivered:
        logger.info("delivered %d entries to MLflow that had waited in %s", delivered, folder)
    return delivered


def _last_time_ms(journal: Journal) -> int:
    """When the run's last value was made, or when it was opened."""
    times = [value[2] for entry in journal.entries if entry.kind == "metrics" for value in entry.content]
    times += [entry.content for entry in journal.entries if entry.kind == "opened"]
    return int(max(times))


def fail_open_runs(tag: str, value: str) -> list[str]:
    """End every RUNNING run whose `tag` is `value` as FAILED; returns their ids. Raises `TrackingError`."""
    store = connect()
    with translate_errors(store.uri):
        experiments = [item.experiment_id for item in store.client.search_experiments()]
        query = f"tags.`{tag}` = '{value}' and attributes.status = 'RUNNING'"
        found = [run.info.run_id for run in store.client.search_runs(experiments, query)]
        for run_id in found:
            store.client.set_terminated(run_id, status="FAILED")
    return found
