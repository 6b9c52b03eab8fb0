"""The outbox: results that MLflow does not have yet, as whole items on this disk, and their way into the store.

An item is a folder `OUTBOX/RUN_ID.KIND/` (history, then results) with `item.json` (an `Item`) and `files/`, laid out as
the run's artifacts are. It appears whole, belongs to one store and one run, and is removed once the store has all of
it. Publishing may be repeated: MLflow keeps each parameter, tag, dataset, metric value and file once, however often it
is sent. The process that publishes an item, or that still trains the run it belongs to, holds a lock on its folder.

A damaged item, and one that the store refuses for good, is renamed to `*.refused` with a warning and stops no other.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from mdpr.artifacts import TrackedRun
from mdpr.errors import TrackingError, one_line
from mdpr.mlops.store import Refused, Store, StoreError, Unreachable, exclusive, not_mlflow

logger = logging.getLogger(__name__)

ORIGINAL_RUN_TAG = "mdpr.original_run_id"
ARTIFACT_FOLDER = "mlruns"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
ITEM_FILE, FILES_FOLDER = "item.json", "files"
PARTIAL_SUFFIX, REFUSED_SUFFIX = ".partial", ".refused"
ABANDONED_AFTER_S = 3600
MAX_ITEM_BYTES = 64 * 1024**2
DAMAGED = (ValueError, OSError, RecursionError)  # what reading an item raises
METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 1000, 100  # what MLflow takes in one log_batch

T = TypeVar("T")
MetricValue = tuple[str, float, int, int]  # name, value, time in ms, step


def now_ms() -> int:
    """The time as MLflow has it: milliseconds since 1970."""
    return int(time.time() * 1000)


class DatasetInput(BaseModel):
    """One of MLflow's datasets, and what the run used it for (`context`: training, validation, testing)."""

    model_config = ConfigDict(extra="forbid", defer_build=True)
    name: str
    digest: str
    source_type: str
    source: str
    profile: str
    context: str


class Item(BaseModel):
    """All that one process adds to one run.

    store     address of the store that the item is for (`Store.address`)
    name      of the run, if the store does not hold it and it has to be made
    status    how the run ended; "RUNNING" until then; None if the process only adds to a run
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)
    format: Literal["mdpr-outbox/1"] = "mdpr-outbox/1"
    store: str
    run: TrackedRun
    name: str | None = None
    params: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    metrics: list[MetricValue] = Field(default_factory=list)
    datasets: list[DatasetInput] = Field(default_factory=list)
    started_ms: int = Field(default_factory=now_ms)
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"] | None = None
    ended_ms: int | None = None

    def last_ms(self) -> int:
        """When the last value was made, or else when the run was started."""
        return max([self.started_ms, *(time_ms for _, _, time_ms, _ in self.metrics)])


@dataclass(frozen=True)
class Box:
    """One item's folder, locked by this process until the block that opened it ends."""

    folder: Path

    def read(self) -> Item:
        """Raises one of `DAMAGED` if the item is."""
        path = self.folder / ITEM_FILE
        if not path.is_file() or path.is_symlink():
            raise ValueError(f"{ITEM_FILE} is missing or is not a file")
        if path.stat().st_size > MAX_ITEM_BYTES:
            raise ValueError(f"{ITEM_FILE} has more than {MAX_ITEM_BYTES} bytes")
        return Item.model_validate(json.loads(path.read_bytes()))

    def write(self, item: Item) -> None:
        """Replace item.json as a whole; it is on the disk when this returns. Raises `TrackingError`."""
        partial = self.folder / f"{ITEM_FILE}{PARTIAL_SUFFIX}"
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(item.model_dump(), file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / ITEM_FILE)
        except OSError as error:
            raise _unwritable(self.folder.parent, error) from None

    def files(self) -> dict[str, Path]:
        """Artifact path -> file, of all below files/: nothing else is ever uploaded. Raises `ValueError` for a link."""
        root = self.folder / FILES_FOLDER
        found = sorted(root.rglob("*"))
        for path in (root, *found):
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                raise ValueError(f"{path.relative_to(self.folder)} is not a regular file")
        return {path.relative_to(root).as_posix(): path for path in found if path.is_file()}

    def remove(self) -> None:
        """Remove the box, and the outbox if it was the last one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # other items are in it
            self.folder.parent.rmdir()

    def set_aside(self, reason: object) -> None:
        """Keep the box under a name that is never published, with a warning."""
        kept = self.folder.with_name(f"{self.folder.name}{REFUSED_SUFFIX}")
        while kept.exists():
            kept = kept.with_name(f"{self.folder.name}.{uuid.uuid4().hex[:4]}{REFUSED_SUFFIX}")
        self.folder.rename(kept)
        logger.warning("%s cannot be published (%s): kept as %s", self.folder, one_line(reason), kept.name)


# --- on the disk --------------------------------------------------------------------------------------------


def box_folder(outbox: Path, run_id: str, kind: str) -> Path:
    """The folder of a run's box of this kind."""
    return outbox / f"{run_id}.{kind}"


@contextmanager
def open_box(outbox: Path, item: Item, kind: str, files: Mapping[str, Path] | None = None) -> Iterator[Box]:
    """The box of this run and kind, made with `item` and copies of `files` (artifact path -> file) if it is new.

    Raises `TrackingError` if the outbox cannot be written, or another process holds the box.
    """
    folder = box_folder(outbox, item.run.run_id, kind)
    partial = outbox / f".{folder.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}"
    with ExitStack() as stack:
        try:
            if folder.exists() and (held := stack.enter_context(_locked(folder))):
                try:
                    Box(folder).read()
                except DAMAGED as error:
                    Box(folder).set_aside(error)
            if not folder.exists():
                partial.mkdir(parents=True)
                held = stack.enter_context(_locked(partial))  # before it has its name: nobody else may come first
                for target, source in (files or {}).items():
                    copy = partial / FILES_FOLDER / target
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, copy)
                Box(partial).write(item)
                partial.rename(folder)
        except OSError as error:
            raise _unwritable(outbox, error) from None
        if not held:
            raise TrackingError(f"run {item.run.run_id} is being written by another process: let it finish")
        yield Box(folder)


def boxes(outbox: Path) -> Iterator[Box]:
    """Every box that no other process holds, in order of name; whatever else lies there is passed over, with a warning.

    Raises `TrackingError` if the outbox is no folder or cannot be read.
    """
    try:
        entries = sorted(outbox.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(outbox, error) from None
    for folder in entries:
        if folder.name.endswith(REFUSED_SUFFIX):
            continue
        if folder.is_symlink() or not folder.is_dir():
            logger.warning("%s is not an item for MLflow: passed over", folder)
            continue
        with _locked(folder) as held:
            if not held:
                logger.debug("%s is held by a running process", folder)
            elif folder.name.endswith(PARTIAL_SUFFIX):  # its process was killed before the item was whole
                if time.time() - folder.stat().st_mtime > ABANDONED_AFTER_S:
                    shutil.rmtree(folder, ignore_errors=True)
            else:
                yield Box(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process holds `folder` during the block; the lock goes with the process."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("%s cannot be read (%s): passed over", folder, error.strerror)
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield _is_at(folder, descriptor)  # not removed between opening and locking it
    finally:
        os.close(descriptor)


def _is_at(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False


def _unwritable(outbox: Path, error: OSError) -> TrackingError:
    return TrackingError(f"tracking.outbox: {outbox} cannot be used ({error.strerror}): name another folder")


# --- into the store -----------------------------------------------------------------------------------------


def publish_outbox(store: Store, outbox: Path, besides: str | None = None) -> int:
    """Publish every item in `outbox` that is for `store`, but for the run `besides`; the number of items published.

    A run whose process was killed ends KILLED, at the time of its last value. Raises `TrackingError` if the store
    cannot be reached or the outbox cannot be read: nothing is lost.
    """
    published = 0
    for box in boxes(outbox):
        try:
            item, files = box.read(), box.files()
        except DAMAGED as error:
            box.set_aside(error)
            continue
        if item.run.run_id == besides:
            continue
        if item.store != store.address:
            logger.info("%s is for MLflow at %s", box.folder, item.store)
            continue
        if item.status == "RUNNING":
            item.status, item.ended_ms = "KILLED", item.last_ms()
        try:
            publish(store, item, files)
        except Refused as error:
            box.set_aside(error)
        except Unreachable as error:
            store.check()  # raises if every other item would fail, too
            logger.warning("%s; %s stays for the next time", error, box.folder)
        else:
            box.remove()
            published += 1
    return published


def publish(store: Store, item: Item, files: Mapping[str, Path] | None = None) -> str:
    """Send all of `item`, and `files` (artifact path -> file), to its run; the run's id in this store.

    Raises `TrackingError`.
    """
    from mlflow.entities import Dataset, InputTag, Param, RunTag
    from mlflow.entities import DatasetInput as StoredInput
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT as CONTEXT

    client, run_id = store.client, mirror_run(store, item.run, item.name).run_id
    # A resumed run keeps the parameters it began with: MLflow never changes one, and only what leaves the result as it
    # is (workers, device) may differ then.
    known = client.get_run(run_id).data.params if item.params else {}
    new_params = [Param(name, text) for name, text in item.params.items() if name not in known]
    for params in in_groups(new_params, PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params)
    for tags in in_groups([RunTag(name, text) for name, text in item.tags.items()], PARAMS_PER_REQUEST):
        client.log_batch(run_id, tags=tags)
    if item.datasets:
        inputs = [
            StoredInput(
                Dataset(x.name, x.digest, x.source_type, x.source, profile=x.profile), [InputTag(CONTEXT, x.context)]
            )
            for x in item.datasets
        ]
        client.log_inputs(run_id, datasets=inputs)
    publish_metrics(store, run_id, item.metrics)
    for target, path in (files or {}).items():
        parent = PurePosixPath(target).parent.as_posix()
        client.log_artifact(run_id, str(path), None if parent == "." else parent)
    if item.status == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    elif item.status:
        client.set_terminated(run_id, item.status, end_time=item.ended_ms)
    elif client.get_run(run_id).info.status == "RUNNING":  # made for these results, or its end could not be published
        client.set_terminated(run_id)
    return run_id


def publish_metrics(store: Store, run_id: str, metrics: Sequence[MetricValue]) -> None:
    """Send values in requests of the size that MLflow takes; raises `TrackingError`."""
    from mlflow.entities import Metric

    for group in in_groups([Metric(*value) for value in metrics], METRICS_PER_REQUEST):
        store.client.log_batch(run_id, metrics=group)


def in_groups(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`values` in slices of `size`; the last may be shorter."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


# --- runs of the store --------------------------------------------------------------------------------------


def mirror_run(store: Store, run: TrackedRun, name: str | None = None) -> TrackedRun:
    """`run` if this store holds it, otherwise its mirror: the one run of the same experiment with its id as a tag.

    The mirror is made on first use. A model out of a teammate's DVC cache names a run of the teammate's store; a model
    that was trained while MLflow could not be reached names a run that no store holds. Raises `TrackingError`.
    """
    here = find_run(store, run.run_id)
    if here is None:
        with exclusive(store.file):
            here = find_run(store, run.run_id) or _make_mirror(store, run, name or f"from-{run.run_id[:8]}")
    return run.model_copy(update={"run_id": here})


def _make_mirror(store: Store, run: TrackedRun, name: str) -> str:
    made = create_run(store, run.experiment, name, {ORIGINAL_RUN_TAG: run.run_id}).run_id
    oldest = find_run(store, run.run_id) or made
    if oldest != made:  # a server has no lock: another process was faster
        store.client.delete_run(made)
    logger.warning("run %s is not in this MLflow store: its results go to run %s", run.run_id, oldest)
    return oldest


def find_run(store: Store, run_id: str) -> str | None:
    """`run_id` if the store holds it, not deleted; else the id of its mirror, if there is one."""
    try:
        if store.client.get_run(run_id).info.lifecycle_stage == "active":
            return run_id
    except Refused:
        pass  # no such run
    experiments = [item.experiment_id for item in store.client.search_experiments()]
    found = store.client.search_runs(experiments, f"tags.`{ORIGINAL_RUN_TAG}` = '{run_id}'")
    # Of several that processes made at the same time, all take the oldest.
    oldest = min(found, key=lambda item: (item.info.start_time, item.info.run_id), default=None)
    return oldest and str(oldest.info.run_id)


def create_run(store: Store, experiment: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
    """A new run of the experiment with this name; raises `TrackingError`."""
    tags = {"mlflow.source.type": "LOCAL", **tags}
    with suppress(KeyError, OSError):  # a container's user without an entry in /etc/passwd
        tags = {"mlflow.user": getpass.getuser(), **tags}
    created = store.client.create_run(_experiment_id(store, experiment), run_name=name, tags=tags)
    try:
        return TrackedRun(run_id=created.info.run_id, experiment=experiment)
    except ValueError:
        raise StoreError(not_mlflow(store.uri, "a run without an id")) from None


def experiment_of(store: Store, run_id: str | None) -> str | None:
    """The experiment of a run, None if the store does not hold the run; raises `TrackingError`."""
    try:
        return run_id and str(store.client.get_experiment(store.client.get_run(run_id).info.experiment_id).name)
    except Refused:
        return None


def _experiment_id(store: Store, name: str) -> str:
    """The id of an experiment, made if there is none yet; its page opens as machine learning."""
    found = store.client.get_experiment_by_name(name)
    if found is None:
        # Beside the sqlite file, not in the working folder; a server has a place of its own.
        folder = store.file and str(store.file.absolute().parent / ARTIFACT_FOLDER)
        try:
            return str(store.client.create_experiment(name, artifact_location=folder, tags={KIND_TAG: KIND}))
        except Refused as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":  # someone else's first run was faster
                raise
            found = store.client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise Refused(f"the experiment {name} is deleted: restore it or set tracking.experiment")
    if KIND_TAG not in found.tags:  # made by hand
        store.client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
    return str(found.experiment_id)
