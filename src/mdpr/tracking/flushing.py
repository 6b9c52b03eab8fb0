"""The next contact: what earlier processes left in the spool goes to the store it was meant for."""

from __future__ import annotations

import logging
from pathlib import Path

from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError
from mdpr.tracking.adoption import adopt
from mdpr.tracking.delivery import deliver
from mdpr.tracking.spool import CLOSED, HEADER, Journal, journals, open_journal
from mdpr.tracking.store import Store, Unreachable

logger = logging.getLogger(__name__)

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
