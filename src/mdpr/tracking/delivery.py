"""From the entries of a journal to requests to MLflow, each of a kind that may be sent twice and is kept once.

params      {name: text}                      a parameter can be written once, and again with the same value
tags        {name: text}
metrics     [[name, value, time_ms, step]]    MLflow keeps one value a name, time and step
datasets    [{dataset, context}]              kept once a name and digest
file        artifact path                     overwritten by itself
opened      time_ms                           the run is running
status      [status, time_ms]                 the run has ended
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from mdpr.tracking.spool import HEADER, Entry, Journal
from mdpr.tracking.store import Store, explained

METRICS_PER_REQUEST = 1000  # what MLflow takes in one log_batch
PARAMS_PER_REQUEST = 100


def deliver(store: Store, journal: Journal, run_id: str) -> int:
    """Send what waits in `journal` to the run `run_id`; the number of entries sent.

    Raises `Unreachable` where the store is away: what it has taken by then is acknowledged, the rest still waits.
    """
    sent = 0
    for kind, group in groupby(journal.pending, key=lambda entry: entry.kind):
        entries = list(group)
        with explained(store.uri):
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
