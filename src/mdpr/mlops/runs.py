"""MLflow runs: the run that `tune` opens, where it comes from, and the results that `evaluate` adds to it.

Everything is in the outbox on this disk before MLflow has it (see `mdpr.mlops.publishing`). If the store cannot be
reached, the work goes on; what is left is published with the next epoch, by the next stage, or by
`mdpr tracking publish`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mdpr.artifacts import Split, TrackedRun, read_card
from mdpr.errors import ArtifactError, Interrupted, TrackingError
from mdpr.evaluation.score_table import in_percent
from mdpr.launch import DVC_ROOT, experiment_name, in_project
from mdpr.mlops.publishing import (
    Box,
    DatasetInput,
    Item,
    MetricValue,
    box_folder,
    create_run,
    experiment_of,
    find_run,
    now_ms,
    open_box,
    publish,
    publish_metrics,
    publish_outbox,
)
from mdpr.mlops.store import Store, Unreachable, connect, store_address, tracking_uri, within
from mdpr.params import BackboneParams, PrepareParams, TrackingParams, TuneParams, read_yaml

logger = logging.getLogger(__name__)

RESULTS_FOLDER = "evaluation"  # below it a run's artifacts hold predictions.parquet, report.html and so on
LOSS = "train/loss"
PARENT_TAG = "mlflow.parentRunId"
DESCRIPTION_TAG = "mlflow.note.content"  # shown on the page of a run
RETRY_AFTER_S = 60.0  # a store that hangs costs its time-out once in this time, not every epoch
SAMPLE_EVERY_S = 5.0
CONTEXTS: dict[Split, str] = {"train": "training", "val": "validation", "test": "testing"}
DIGEST_LENGTH = 36  # characters that MLflow keeps; the whole sha256 is in the profile
BEFORE_TUNE = ("prepare", "validate", "probe", "describe", "encode")


# --- the run of a training ----------------------------------------------------------------------------------


@dataclass
class OpenRun:
    """A run while it is open. `item` holds all of its values so far, `here` its id in the store once it has one."""

    item: Item
    box: Box
    store: Store | None
    here: str | None = None
    resumed: bool = False
    _sent: int = 0  # metric values that the store has
    _logged: set[int] = field(default_factory=set)  # epochs that an earlier process of this run has logged
    _retry_at_s: float = 0.0

    @property
    def tracked(self) -> TrackedRun:
        return self.item.run

    @property
    def run_id(self) -> str:
        return self.item.run.run_id

    def log_epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """All values of one epoch in one request. A store that cannot be reached is a warning: training goes on.

        An epoch that the run already has, from before it was resumed, is not logged again.
        """
        if epoch in self._logged:
            return
        self._logged.add(epoch)
        self._log(dict(_as_metric(name, value) for name, value in metrics.items()), epoch)

    def log_selected(self, epoch: int, val_accuracy: Mapping[str, float]) -> None:
        """The epoch whose weights were kept, and its validation accuracy by branch."""
        scores = {f"selected/val_{branch}": value for branch, value in in_percent(val_accuracy).items()}
        self._log({"selected/epoch": epoch, **scores}, epoch)

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        self.item.metrics += as_metrics(metrics, step)
        try:
            self.box.write(self.item)
            if time.monotonic() >= self._retry_at_s:
                self.send()
        except TrackingError as error:
            self._retry_at_s = time.monotonic() + RETRY_AFTER_S
            logger.warning("%s; the values wait in %s", error, self.box.folder)

    def send(self) -> None:
        """Send the values that the store does not have yet; the first time, all of the item. Raises `TrackingError`."""
        self.store = self.store or connect()
        if self.here is None or self.item.status != "RUNNING":
            self.here = publish(self.store, self.item.model_copy(update={"metrics": self.item.metrics[self._sent :]}))
        else:
            publish_metrics(self.store, self.here, self.item.metrics[self._sent :])
        self._sent = len(self.item.metrics)

    def close(self, status: str) -> None:
        """The rest of the values, then the status. What fails here must not cost the user a trained model."""
        self.item.status, self.item.ended_ms = status, now_ms()  # type: ignore[assignment]
        try:
            self.box.write(self.item)
            self.send()
            self.box.remove()
        except TrackingError as error:
            logger.error("%s; the rest of run %s waits in %s", error, self.run_id, self.box.folder)


@contextmanager
def open_run(
    tracking: TrackingParams,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    datasets: Sequence[DatasetInput] = (),
    run_id: str | None = None,
) -> Iterator[OpenRun]:
    """A run with flat `params`, `tags` and `datasets` (see `split_inputs`); it ends FINISHED, FAILED on an exception,
    KILLED on Ctrl-C and SIGTERM.

    `run_id` continues the run that a killed process left. If the store cannot be reached, the run gets an id of its
    own and is made there later. Under Kubeflow's MLflow plugin it is nested in the run of its task, in the experiment
    of that. Raises `TrackingError`, before the work, if the store refuses the login or is no MLflow store, and if the
    outbox cannot be written.
    """
    outbox, store, resumed = in_project(Path(tracking.outbox)), None, run_id is not None
    parent = kubeflow_run()
    tags = {"mlflow.source.name": "mdpr tune", **({PARENT_TAG: parent} if parent else {}), **tags}
    experiment = tracking.experiment
    try:
        store = connect()
        publish_outbox(store, outbox, besides=run_id)
        experiment = experiment_of(store, parent) or experiment
        if run_id is None or not (box_folder(outbox, run_id, "history").exists() or find_run(store, run_id)):
            run_id = create_run(store, experiment, name, tags).run_id
    except Unreachable as error:
        logger.warning("%s; the run is made there later", error)
    item = Item(
        store=store_address(tracking_uri()),
        run=TrackedRun(run_id=run_id or uuid.uuid4().hex, experiment=experiment),
        name=name,
        params={key: str(value) for key, value in params.items()},
        tags=dict(tags),
        datasets=list(datasets),
        status="RUNNING",
    )
    with open_box(outbox, item, "history") as box:
        item.metrics = box.read().metrics  # of the killed process, if it left some
        box.write(item)
        run = OpenRun(item, box, store, resumed=resumed, _logged={step for *_, step in item.metrics})
        if store:
            with suppress(Unreachable):
                run.send()
                run._logged |= {item.step for item in store.client.get_metric_history(str(run.here), LOSS)}
        status = "FAILED"
        try:
            with _system_metrics(tracking, run):
                yield run
            status = "FINISHED"
        except (KeyboardInterrupt, Interrupted):
            status = "KILLED"
            raise
        finally:
            run.close(status)


def kubeflow_run() -> str | None:
    """The run that Kubeflow's MLflow plugin has opened for this task (KEP-12862); None outside Kubeflow."""
    return os.environ.get("MLFLOW_RUN_ID") if "KFP_RUN_ID" in os.environ else None


def open_tuning_run(
    tracking: TrackingParams,
    tune: TuneParams,
    backbone: BackboneParams,
    inputs: Sequence[Path],
    digests: Mapping[str, str],
    *,
    run_id: str | None,
) -> AbstractContextManager[OpenRun]:
    """The run of a training, with what its model comes from. `inputs` are its folders, `prepared` the first.

    Parameters are the settings of this stage and those before it. `run_id` and errors are as for `open_run`.
    """
    prepared = inputs[0]
    return open_run(
        tracking,
        run_name(tune),
        settings_before(prepared) | flatten({"tune": tune, "backbone": backbone}),
        {DESCRIPTION_TAG: describe_data(prepared), **digests, **lineage_tags(inputs)},
        datasets=split_inputs(prepared, ["train", "val"]),
        run_id=run_id,
    )


@contextmanager
def _system_metrics(tracking: TrackingParams, run: OpenRun) -> Iterator[None]:
    """MLflow's own monitor of CPU, memory, disk, network and GPUs; what it cannot send is lost."""
    if not (tracking.system_metrics and run.here):
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.here, sampling_interval=SAMPLE_EVERY_S, resume_logging=run.resumed)
    monitor.start()
    try:
        yield
    finally:
        with suppress(TimeoutError):  # it talks to the store once more
            within(RETRY_AFTER_S, monitor.finish)


def _as_metric(name: str, value: float) -> tuple[str, float]:
    """A column of history.csv as MLflow's pages group it: train/loss, and val/fused/all in percent."""
    if not name.startswith("val_"):
        return f"train/{name}", value
    return f"val/{name.removeprefix('val_').replace('_', '/', 1)}", in_percent({name: value})[name]


# --- where a run comes from: settings, data, the state of Git and DVC ---------------------------------------


def split_inputs(prepared: Path, splits: Sequence[Split]) -> list[DatasetInput]:
    """The splits of a prepared data set as MLflow's datasets, for `open_run` and `add_results`.

    The images stay where they are. Raises `ArtifactError` if card.json is missing.
    """
    card, inputs = read_card(prepared), []
    for split in splits:
        path = prepared / f"{split}.parquet"
        digest = card.sha256[path.name]
        profile = {"images": card.images[split], "classes": len(card.images_per_class[split]), "sha256": digest}
        inputs.append(
            DatasetInput(
                name=f"{card.source}-{split}",
                digest=digest[:DIGEST_LENGTH],
                source_type="local",
                source=json.dumps({"uri": str(path.absolute())}),
                profile=json.dumps(profile),
                context=CONTEXTS[split],
            )
        )
    return inputs


def run_name(tune: TuneParams) -> str:
    """DVC's name of the experiment, or else the settings in which runs usually differ."""
    answer = "with routing" if tune.routing else "without routing"
    return experiment_name() or f"{tune.prompting} {answer}, {tune.base_loss}, {tune.epochs} epochs, seed {tune.seed}"


def describe_data(prepared: Path) -> str:
    """A sentence for people about the data of a run."""
    card = read_card(prepared)
    counts = card.images_per_class["train"]
    return (
        f"{sum(counts)} training images of {len(counts)} classes ({card.source}), {min(counts)} to {max(counts)} per "
        f"class; {card.images['val']} validation and {card.images['test']} test images."
    )


def settings_before(prepared: Path) -> dict[str, Any]:
    """The settings of the stages before `tune`, flat: of all that ran inside DVC, of `prepare` elsewhere."""
    lock = _dvc_lock()
    if "prepare" not in lock:
        card = read_card(prepared).model_dump()
        return flatten({"prepare": {key: card[key] for key in PrepareParams.model_fields if key in card}})
    used = [lock.get(stage, {}).get("params", {}).get("params.yaml", {}) for stage in BEFORE_TUNE]
    return flatten({name: section for sections in used for name, section in sections.items()})


def lineage_tags(inputs: Sequence[Path] = ()) -> dict[str, str]:
    """mdpr's version, the git commit, the md5 of each of `inputs` in dvc.lock, DVC's experiment, the run
    of Kubeflow Pipelines.

    A tag that has no source here (no git, not inside DVC, not inside Kubeflow) is left out. Changes that are
    not committed set `mdpr.git.dirty`; dvc.lock does not count, for DVC rewrites it while stages run.
    """
    from mdpr import __version__

    tags = {"mdpr.version": __version__, **_git_tags(Path.cwd())}
    outs = {Path(out["path"]).resolve(): out for stage in _dvc_lock().values() for out in stage.get("outs", ())}
    found = (outs.get(path.resolve()) for path in inputs)
    tags |= {f"dvc.md5.{out['path']}": out["md5"] for out in found if out}
    if name := experiment_name():
        tags["dvc.experiment"] = name
    if run_id := os.environ.get("KFP_RUN_ID"):
        tags["kfp.run_id"] = run_id
    return tags


def _git_tags(folder: Path) -> dict[str, str]:
    try:
        import git
    except ImportError:  # GitPython refuses to load without the git program
        return {}
    try:
        with git.Repo(folder, search_parent_directories=True) as repository:
            commit = repository.head.commit.hexsha
            changes = repository.git.status("--porcelain", "--untracked-files=no", "--", ":(exclude,glob)**/dvc.lock")
    except (git.GitError, ValueError):  # not a repository, one that git does not trust, or one without a commit
        return {}
    return {"mlflow.source.git.commit": commit, "mdpr.git.dirty": str(bool(changes)).lower()}


def _dvc_lock() -> dict[str, Any]:
    """The stages of dvc.lock here, maybe in a temporary copy of the project; none if DVC did not start this process."""
    lock = Path("dvc.lock")
    return dict(read_yaml(lock).get("stages", {})) if DVC_ROOT in os.environ and lock.is_file() else {}


def flatten(tree: Mapping[str, Any] | BaseModel, parent: str = "") -> dict[str, Any]:
    """Nested mappings and pydantic models on one level: {"tune": {"loss": {"tau": 1}}} -> "tune.loss.tau"."""
    flat: dict[str, Any] = {}
    for key, value in (tree.model_dump() if isinstance(tree, BaseModel) else tree).items():
        name = f"{parent}.{key}" if parent else str(key)
        flat.update(flatten(value, name) if isinstance(value, Mapping | BaseModel) else {name: value})
    return flat


# --- results ------------------------------------------------------------------------------------------------


def queue_results(
    run: TrackedRun,
    tracking: TrackingParams,
    metrics: Mapping[str, float],
    files: Mapping[str, Path],
    *,
    datasets: Sequence[DatasetInput] = (),
    tags: Mapping[str, str] | None = None,
) -> Callable[[], None]:
    """Put `metrics`, `files` (artifact path -> file), `datasets` and `tags` of `run` into the outbox.

    The function that is returned publishes them: in `run`, or in its mirror in this store. Neither raises
    `TrackingError`: the results are on the disk, and a later stage publishes what is left.
    """
    outbox = in_project(Path(tracking.outbox))
    item = Item(
        store=store_address(tracking_uri()),
        run=TrackedRun(run_id=run.run_id, experiment=tracking.experiment),
        metrics=as_metrics(metrics, step=0),
        tags=dict(tags or {}),
        datasets=list(datasets),
    )

    def warn(error: TrackingError) -> None:
        logger.warning("%s; results of run %s are not in MLflow yet (%s)", error, run.run_id, outbox)

    def publish_queued() -> None:
        try:
            publish_outbox(connect(), outbox)
        except TrackingError as error:
            warn(error)

    try:
        with open_box(outbox, item, f"results-{time.time_ns()}", files):
            return publish_queued
    except TrackingError as error:
        warn(error)
        return lambda: None


def add_results(run: TrackedRun, tracking: TrackingParams, *results: Any, **more: Any) -> None:
    """`queue_results`, and publish them at once."""
    queue_results(run, tracking, *results, **more)()


def publish_waiting(store: Store, tracking: TrackingParams) -> None:
    """Publish what earlier processes left; a failure is a warning, for no stage depends on it."""
    try:
        published = publish_outbox(store, in_project(Path(tracking.outbox)))
        if published:
            logger.info("items published to MLflow from %s: %d", tracking.outbox, published)
    except TrackingError as error:
        logger.warning("%s", error)


def fetch_results(run_id: str, folder: Path, names: Sequence[str]) -> Path:
    """Copy files that evaluate wrote from run `run_id` below `folder`; returns the folder that holds them.

    Raises `TrackingError` if the store has no such run, `ArtifactError` if the run lacks one of the files.
    """
    client = connect().client
    folder.mkdir(parents=True, exist_ok=True)
    found = {Path(item.path).name for item in client.list_artifacts(run_id, RESULTS_FOLDER)}
    if missing := [name for name in names if name not in found]:
        raise ArtifactError(f"run {run_id} has no {RESULTS_FOLDER}/{missing[0]}: run evaluate again")
    copies = [Path(client.download_artifacts(run_id, f"{RESULTS_FOLDER}/{name}", str(folder))) for name in names]
    return copies[0].parent  # below `folder`, or right in it: stores differ


def fail_open_runs(tag: str, value: str) -> list[str]:
    """End every RUNNING run whose `tag` is `value` as FAILED; returns their ids. Raises `TrackingError`."""
    client = connect().client
    experiments = [item.experiment_id for item in client.search_experiments()]
    query = f"tags.`{tag}` = '{value}' and attributes.status = 'RUNNING'"
    found = [run.info.run_id for run in client.search_runs(experiments, query)]
    for run_id in found:
        client.set_terminated(run_id, status="FAILED")
    return found


def result_metrics(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of metrics.json by their names in MLflow, in percent (NLL in nats): test/fused/all ..."""
    percent = {branch: in_percent(figures) for branch, figures in scores.items()}
    return {f"test/{branch}/{name}": value for branch, figures in percent.items() for name, value in figures.items()}


def as_metrics(metrics: Mapping[str, float], step: int) -> list[MetricValue]:
    """MLflow's names take letters, digits, spaces and _ - . / : only."""
    time_ms = now_ms()
    return [(re.sub(r"[^\w\-./: ]", "_", key), float(value), time_ms, step) for key, value in metrics.items()]
