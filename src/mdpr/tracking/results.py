"""Results that a run's artifacts hold in MLflow, as a folder on this disk."""

from __future__ import annotations

from pathlib import Path

from mdpr.errors import ArtifactError
from mdpr.tracking.runs import RESULTS_FOLDER
from mdpr.tracking.store import connect, explained

NEEDED = ("predictions.parquet", "per_class.csv", "lineage.json")


def fetch_results(run_id: str, folder: Path) -> Path:
    """Copy what a comparison needs of run `run_id` below `folder`; returns the folder that holds it.

    Raises `TrackingError` where the store has no such run, `ArtifactError` where the run has no results.
    """
    store = connect()
    folder.mkdir(parents=True, exist_ok=True)
    with explained(store.uri):
        found = {Path(item.path).name for item in store.client.list_artifacts(run_id, RESULTS_FOLDER)}
        missing = [name for name in NEEDED if name not in found]
        if missing:
            raise ArtifactError(f"run {run_id} has no {RESULTS_FOLDER}/{missing[0]}: run evaluate first")
        copies = [
            Path(store.client.download_artifacts(run_id, f"{RESULTS_FOLDER}/{name}", str(folder))) for name in NEEDED
        ]
    return copies[0].parent  # below `folder`, or right in it: stores differ
