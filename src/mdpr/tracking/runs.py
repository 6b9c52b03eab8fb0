"""MLflow tracking: the run that `tune` opens and the results that `evaluate` adds to it.

Everything takes one way: first into the run's journal on this disk, then to the store. Where the store is away the
work goes on; what waits is delivered with the next values, by the next stage, or by `mdpr tracking flush`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdpr.artifacts import TrackedRun
from mdpr.config import TrackingParams
from mdpr.errors import Interrupted, TrackingError
from mdpr.tracking.adoption import adopt, create_run, holds_run
from mdpr.tracking.delivery import deliver
from mdpr.tracking.flushing import flush, start_journal
from mdpr.tracking.lineage import flatten, lineage_tags
from mdpr.tracking.spool import CLOSED, OPENED, Journal
from mdpr.tracking.store import Store, Unreachable, connect, explained
from mdpr.tracking.system_metrics import SystemMonitor, monitored

__all__ = ["OpenRun", "add_results", "flatten", "lineage_tags", "open_run"]

logger = logging.getLogger(__name__)

RESULTS_FOLDER = "evaluation"  # where a run's artifacts hold predictions.parquet, report.html and so on
RETRY_AFTER_S = 60.0  # a store that hangs costs its time-out once in this time, not every epoch


@dataclass
class OpenRun:
    """A run while it is open. Values that cannot be delivered wait in its journal and go with a later epoch's."""

    store: Store
    tracked: TrackedRun
    journal: Journal
    monitor: SystemMonitor | None = None
    _logged: set[int] = field(default_factory=set)  # epochs that an earlier process of this run has logged
    _retry_at_s: float = 0.0

    @property
    def run_id(self) -> str:
        return self.tracked.run_id

    def log_epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """All values of one epoch in one request. A store that is away is a warning: training goes on.

        An epoch that the run already has, from before it was resumed, is not logged again.
        """
        if epoch in self._logged:
            return
        self._logged.add(epoch)
        load = self.monitor.drain() if self.monitor else {}
        self.journal.append("metrics", as_metrics({**metrics, **load}, epoch))
        if time.monotonic() < self._retry_at_s:
            return
        try:
            deliver(self.store, self.journal, self.run_id)
        except TrackingError as error:
            self._retry_at_s = time.monotonic() + RETRY_AFTER_S
            logger.warning("%s; %d entries wait in %s", error, len(self.journal.pending), self.journal.path)

    def close(self, status: str) -> None:
        """The rest of the values, then the status. What fails here must not cost the user a trained model."""
        self.journal.append(CLOSED, [status, _now_ms()])
        try:
            deliver(self.store, self.journal, self.run_id)
            self.journal.remove()
        except TrackingError as error:
            logger.error("%s; the rest of run %s waits in %s", error, self.run_id, self.journal.path)
        self.journal.close()


@contextmanager
def open_run(
    tracking: TrackingParams,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    datasets: Sequence[Mapping[str, Any]] = (),
    run_id: str | None = None,
) -> Iterator[OpenRun]:
    """A run with flat `params`, `tags` and `datasets` (see `split_inputs`); it ends FINISHED, FAILED on an exception,
    KILLED on Ctrl-C and SIGTERM.

    `run_id` goes on with the run that a killed process left, where the store holds it; otherwise it is a new one.
    Raises `TrackingError` where the store cannot be reached: before the work, not after it.
    """
    store, spool = connect(), Path(tracking.spool)
    flush(store, spool, besides=run_id)
    resumed = run_id is not None and holds_run(store, run_id)
    if run_id is not None and resumed:
        tracked = TrackedRun(run_id=run_id, experiment=tracking.experiment)
    else:
        tracked = create_run(store, tracking.experiment, name, tags)
    with closing(start_journal(store, spool, tracked)) as journal:
        waiting = {step for entry in journal.entries if entry.kind == "metrics" for _, _, _, step in entry.content}
        journal.append(OPENED, _now_ms())
        if not resumed:
            journal.append("params", {key: str(value) for key, value in params.items()})
        if datasets:
            journal.append("datasets", list(datasets))
        deliver(store, journal, tracked.run_id)
        status = "FAILED"
        with monitored(tracking.system_metrics) as monitor:
            logged = waiting | _steps(store, tracked.run_id) if resumed else set()
            run = OpenRun(store, tracked, journal, monitor, logged)
            try:
                yield run
                status = "FINISHED"
            except (KeyboardInterrupt, Interrupted):
                status = "KILLED"
                raise
            finally:
                run.close(status)


def add_results(
    run: TrackedRun,
    tracking: TrackingParams,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    *,
    datasets: Sequence[Mapping[str, Any]] = (),
    attachments: Mapping[str, Path] | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrackedRun:
    """Add `metrics`, `files` (artifacts below evaluation/), `attachments` (artifact path -> file), `datasets` and
    `tags` to `run`; returns the run that now holds them.

    That is another one where this store does not hold `run` (see `adopt`). Where the store is away, everything waits
    in the spool and `run` comes back. Raises `TrackingError` where the store refuses.
    """
    store, spool = connect(), Path(tracking.spool)
    try:
        flush(store, spool)
        here = adopt(store, run, tracking.experiment)
    except Unreachable:  # said once, by the delivery below
        here = run.model_copy(update={"experiment": tracking.experiment})
    with closing(start_journal(store, spool, here)) as journal:
        journal.append("metrics", as_metrics(metrics, step=0))
        for file in files:
            journal.append_file(file, f"{RESULTS_FOLDER}/{file.name}")
        for target, file in (attachments or {}).items():
            journal.append_file(file, target)
        if datasets:
            journal.append("datasets", list(datasets))
        if tags:
            journal.append("tags", dict(tags))
        try:
            deliver(store, journal, here.run_id)
            _close_if_open(store, here.run_id)
            journal.remove()
        except Unreachable as error:
            logger.warning("%s; the results of run %s wait in %s", error, here.run_id, spool)
    return here


def as_metrics(metrics: Mapping[str, float], step: int) -> list[list[Any]]:
    """[name, value, time_ms, step] each. MLflow's names take letters, digits, spaces and _ - . / : alone."""
    now_ms = _now_ms()
    return [[re.sub(r"[^\w\-./: ]", "_", key), float(value), now_ms, step] for key, value in metrics.items()]


def _steps(store: Store, run_id: str) -> set[int]:
    """The epochs that the store has of a run."""
    with explained(store.uri):
        names = store.client.get_run(run_id).data.metrics
        history = store.client.get_metric_history(run_id, "loss" if "loss" in names else next(iter(names), "loss"))
    return {item.step for item in history}


def _close_if_open(store: Store, run_id: str) -> None:
    """A run that was made for these results, or whose end could not be delivered."""
    with explained(store.uri):
        if store.client.get_run(run_id).info.status == "RUNNING":
            store.client.set_terminated(run_id)


def _now_ms() -> int:
    return int(time.time() * 1000)
