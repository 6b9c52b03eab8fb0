"""A monitoring and MLflow: the reference of a registered model, and a run that holds the result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mdpr.artifacts.prediction_log import REFERENCE_FILE
from mdpr.errors import ArtifactError, TrackingError
from mdpr.evaluation.score_table import in_percent
from mdpr.mlops.registry import Registry
from mdpr.mlops.runs import RESULTS_FOLDER, add_results, open_run
from mdpr.mlops.store import connect
from mdpr.params import TrackingParams

if TYPE_CHECKING:
    from mdpr.monitoring.shift import Monitoring

logger = logging.getLogger(__name__)

MODELS, RUNS = "models:/", "runs:/"


def fetch_reference(address: str, folder: Path) -> Path:
    """`address` as a path: what it is, or copies below `folder` of the reference that runs:/ID or models:/... has.

    Raises `TrackingError` if MLflow has no such run or version, `ArtifactError` if that has no reference.
    """
    if not address.startswith((MODELS, RUNS)):
        return Path(address)
    store = connect()
    run_id = address.removeprefix(RUNS)
    if address.startswith(MODELS):
        name, _, rest = address.removeprefix(MODELS).replace("@", "/@").partition("/")
        registry = Registry(store, name)
        version = registry.get_by_alias(rest[1:]) if rest.startswith("@") else registry.get(rest)
        if version is None:
            raise TrackingError(f"{address}: there is no such version: run promote, or name another")
        run_id = version.run_id
    found = {Path(item.path).name for item in store.client.list_artifacts(run_id, RESULTS_FOLDER)}
    if REFERENCE_FILE not in found:
        raise ArtifactError(f"{address}: its run {run_id} has no {RESULTS_FOLDER}/{REFERENCE_FILE}: run evaluate again")
    wanted = [name for name in (REFERENCE_FILE, "per_class.csv") if name in found]
    paths = [f"{RESULTS_FOLDER}/{name}" for name in wanted]
    copies = [Path(store.client.download_artifacts(run_id, path, str(folder))) for path in paths]
    return copies[0].parent


def publish_monitoring(content: Monitoring, files: Mapping[str, Path], tracking: TrackingParams) -> None:
    """A run of its own with the figures and `files` (artifact path -> file). What MLflow does not take is a warning."""
    tags = {"mdpr.advice": content.advice, "mdpr.model": content.model, "mdpr.model_version": content.version}
    try:
        with open_run(tracking, "monitor", {"model": content.model, "version": content.version}, tags) as run:
            tracked = run.tracked
    except TrackingError as error:
        logger.warning("%s; the monitoring is on the disk, not in MLflow", error)
        return
    add_results(tracked, tracking, monitoring_metrics(content), files)


def monitoring_metrics(content: Monitoring) -> dict[str, float]:
    """The figures by their names in MLflow: accuracies and shares of classes in percent, as in every run."""
    accuracy = content.accuracy
    accuracies = {"reference": accuracy.reference, "expected": accuracy.expected, "with_prior": accuracy.with_prior}
    shares = {group: share.estimated for group, share in content.groups.items()}
    metrics = {
        "monitor/images": content.images,
        "monitor/label_shift": content.label_shift,
        "monitor/retrain": float(content.advice == "retrain"),
        **{f"monitor/accuracy_{name}": value for name, value in in_percent(accuracies).items()},
        **{f"monitor/share/{group}": value for group, value in in_percent(shares).items()},
    }
    return metrics | ({"monitor/drift_auc": content.drift.auc} if content.drift else {})
