"""Runs that a killed process left open."""

from __future__ import annotations

from mdpr.tracking.store import connect, explained


def fail_open_runs(tag: str, value: str) -> list[str]:
    """End every RUNNING run whose `tag` is `value` as FAILED; returns their ids. Raises `TrackingError`."""
    store = connect()
    with explained(store.uri):
        experiments = [item.experiment_id for item in store.client.search_experiments()]
        query = f"tags.`{tag}` = '{value}' and attributes.status = 'RUNNING'"
        found = [run.info.run_id for run in store.client.search_runs(experiments, query)]
        for run_id in found:
            store.client.set_terminated(run_id, status="FAILED")
    return found
