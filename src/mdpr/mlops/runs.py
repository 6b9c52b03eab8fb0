"""How busy the machine is: MLflow's own monitors, read in the background, averaged an epoch.

MLflow's monitoring thread would send its values itself and lose them while the store is away; here they take the
same way as every other value.

The splits of a prepared data set as MLflow's datasets: name, digest, size. The images stay where they are.

Where a run comes from, as MLflow tags, and nested settings as flat names.

Results that a run's artifacts hold in MLflow, as a folder on this disk.

MLflow tracking: the run that `tune` opens and the results that `evaluate` adds to it.

Everything takes one way: first into the run's journal on this disk, then to the store. Where the store is away the
work goes on; what waits is delivered with the next values, by the next stage, or by `mdpr tracking publish`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from pydantic import BaseModel

from mdpr.artifacts import Split, TrackedRun, read_card
from mdpr.errors import ArtifactError, Interrupted, TrackingError
from mdpr.mlops.delivery import adopt, create_run, deliver, flush, holds_run, start_journal
from mdpr.mlops.spool import CLOSED, OPENED, Journal
from mdpr.mlops.store import Store, Unreachable, connect, translate_errors
from mdpr.params import TrackingParams, read_yaml

logger = logging.getLogger(__name__)


SAMPLE_EVERY_S = 5.0
PREFIX = "system/"


class SystemMonitor:
    """Samples CPU, memory, disk, network and GPUs until it is stopped."""

    def __init__(self) -> None:
        self._monitors = _monitors()
        self._lock, self._stopped = Lock(), Event()
        self._thread = Thread(target=self._run, name="system-metrics", daemon=True)

    def drain(self) -> dict[str, float]:
        """Mean of each figure since the last call, one sample at least: `system/cpu_utilization_percentage` ..."""
        values: dict[str, float] = {}
        with self._lock:
            self._sample()
            for monitor in self._monitors:
                values |= {PREFIX + name: float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
        return values

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        for monitor in self._monitors:
            monitor.collect_metrics()


@contextmanager
def monitored(enabled: bool) -> Iterator[SystemMonitor | None]:
    """A running monitor, or None where it is switched off."""
    if not enabled:
        yield None
        return
    monitor = SystemMonitor()
    monitor._thread.start()
    try:
        yield monitor
    finally:
        monitor._stopped.set()
        monitor._thread.join(timeout=SAMPLE_EVERY_S)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:  # no driver, no GPU
        logger.debug("no GPU figures: %s", error)
    return monitors


CONTEXTS: dict[Split, str] = {"train": "training", "val": "validation", "test": "testing"}
DIGEST_LENGTH = 36  # characters that MLflow keeps; the whole sha256 is in the profile


def split_inputs(prepared: Path, splits: Sequence[Split]) -> list[dict[str, Any]]:
    """One entry a split for `open_run` and `add_results`; raises `ArtifactError` where card.json is missing."""
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource

    card, inputs = read_card(prepared), []
    for split in splits:
        path = prepared / f"{split}.parquet"
        digest = card.sha256[path.name]
        source = LocalArtifactDatasetSource(str(path.absolute()))
        dataset = MetaDataset(source, name=f"{card.source}-{split}", digest=digest[:DIGEST_LENGTH]).to_dict()
        profile = {"images": card.images[split], "classes": len(card.images_per_class[split]), "sha256": digest}
        dataset["profile"] = json.dumps(profile)
        dataset.pop("schema", None)
        inputs.append({"dataset": dataset, "context": CONTEXTS[split]})
    return inputs


def lineage_tags(inputs: Sequence[Path] = ()) -> dict[str, str]:
    """mdpr's version, the git commit, the md5 of each of `inputs` in dvc.lock, the run of Kubeflow Pipelines.

    A tag that has no source here (no git, not inside DVC, not inside Kubeflow) is left out. Changes that are
    not committed set `mdpr.git.dirty`; dvc.lock does not count, for DVC rewrites it while stages run.
    """
    from mdpr import __version__

    tags = {"mdpr.version": __version__, **_git_tags(Path.cwd())}
    if root := os.environ.get("DVC_ROOT"):
        tags |= _dvc_tags(Path(root), inputs)
    if run_id := os.environ.get("KFP_RUN_ID"):
        tags["kfp.run_id"] = run_id
    return tags


def flatten(tree: Mapping[str, Any] | BaseModel, parent: str = "") -> dict[str, Any]:
    """Nested mappings and pydantic models on one level: {"tune": {"loss": {"tau": 1}}} -> "tune.loss.tau"."""
    flat: dict[str, Any] = {}
    for key, value in (tree.model_dump() if isinstance(tree, BaseModel) else tree).items():
        name = f"{parent}.{key}" if parent else str(key)
        flat.update(flatten(value, name) if isinstance(value, Mapping | BaseModel) else {name: value})
    return flat


def _git_tags(folder: Path) -> dict[str, str]:
    try:
        import git
    except ImportError:  # GitPython refuses to load without the git program
        return {}
    try:
        with git.Repo(folder, search_parent_directories=True) as repository:
            commit = repository.head.commit.hexsha
            changes = repository.git.status("--porcelain", "--untracked-files=no", "--", ":(exclude,glob)**/dvc.lock")
    except (
        git.GitError,
        ValueError,
    ):  # not a repository, one that git does not trust, or one without a commit
        return {}
    return {"mlflow.source.git.commit": commit, "mdpr.git.dirty": str(bool(changes)).lower()}


def _dvc_tags(root: Path, inputs: Sequence[Path]) -> dict[str, str]:
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    stages = read_yaml(lock).get("stages", {}).values()
    outs = {(root / out["path"]).resolve(): out for stage in stages for out in stage.get("outs", ())}
    found = (outs.get(path.resolve()) for path in inputs)
    return {f"dvc.md5.{out['path']}": out["md5"] for out in found if out}


NEEDED = ("predictions.parquet", "per_class.csv", "lineage.json")


def fetch_results(run_id: str, folder: Path) -> Path:
    """Copy what a comparison needs of run `run_id` below `folder`; returns the folder that holds it.

    Raises `TrackingError` where the store has no such run, `ArtifactError` where the run has no results.
    """
    store = connect()
    folder.mkdir(parents=True, exist_ok=True)
    with translate_errors(store.uri):
        found = {Path(item.path).name for item in store.client.list_artifacts(run_id, RESULTS_FOLDER)}
        missing = [name for name in NEEDED if name not in found]
        if missing:
            raise ArtifactError(f"run {run_id} has no {RESULTS_FOLDER}/{missing[0]}: run evaluate first")
        copies = [
            Path(store.client.download_artifacts(run_id, f"{RESULTS_FOLDER}/{name}", str(folder))) for name in NEEDED
        ]
    return copies[0].parent  # below `folder`, or right in it: stores differ


__all__ = ["OpenRun", "add_results", "flatten", "lineage_tags", "open_run"]


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
    store, spool = connect(), Path(tracking.outbox)
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
    store, spool = connect(), Path(tracking.outbox)
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
    with translate_errors(store.uri):
        names = store.client.get_run(run_id).data.metrics
        history = store.client.get_metric_history(run_id, "loss" if "loss" in names else next(iter(names), "loss"))
    return {item.step for item in history}


def _close_if_open(store: Store, run_id: str) -> None:
    """A run that was made for these results, or whose end could not be delivered."""
    with translate_errors(store.uri):
        if store.client.get_run(run_id).info.status == "RUNNING":
            store.client.set_terminated(run_id)


def _now_ms() -> int:
    return int(time.time() * 1000)
