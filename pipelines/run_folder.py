"""The folder that a pipeline run left, on this disk or in the pipeline root of a cluster.

    FOLDER/TASK/ARTIFACT         one machine: `<pipeline>-<time>` in --output
                                 (kfp/local/executor_input_utils.py, construct_local_task_root)
    FOLDER/TASK/SALT/ARTIFACT    a cluster: `<pipeline root>/<pipeline>/<run id>`, a salt an execution
                                 (kubeflow/pipelines, backend/src/v2/driver, provisionOutputs)

Parameters that tasks hand on lie in neither; the run's own are the artifact `settings` of `configure`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from mdpr.data.intake import map_in_order
from mdpr.errors import ArtifactError, MdprError
from mdpr.progress import track
from mdpr.stages.stage import STAGES, load_stage

SETTINGS = ("configure", "settings")
# In some variants another task has the last word on a stage's output: it comes first here.
TASKS: Mapping[str, Sequence[str]] = {name: (name,) for name in STAGES} | {
    "describe": ("merge", "describe"),
    "tune": ("select", "tune"),
}


@dataclass(frozen=True)
class RunFolder:
    """Where a run's artifacts lie: `path` in the file system `files`, `address` for messages."""

    files: AbstractFileSystem
    path: str
    address: str

    @classmethod
    def open(cls, address: str) -> RunFolder:
        """Of a path or an fsspec address; raises `ArtifactError` where nothing is there."""
        plain = urlsplit(address)._replace(query="").geturl() if "://" in address else address
        # What Kubeflow calls minio:// is any store that speaks S3; AWS_ENDPOINT_URL says which.
        plain = plain.replace("minio://", "s3://", 1) if plain.startswith("minio://") else plain
        try:
            files, path = url_to_fs(plain, use_listings_cache=False) if "://" in plain else url_to_fs(plain)
        except ImportError as error:
            raise MdprError(f"{address}: {error}; for s3:// and minio://, pip install 'mdpr[s3]'") from None
        except ValueError as error:
            raise ArtifactError(f"{address}: {error}") from None
        with store_errors(address):
            if not files.isdir(path):
                raise ArtifactError(f"{address}: there is no such folder: name that of one run")
        return cls(files, path.rstrip("/"), address)

    @property
    def name(self) -> str:
        """The run's own: with its time on one machine, the run's id on a cluster."""
        return posixpath.basename(self.path)

    def find(self, task: str, artifact: str) -> str | None:
        """Path of an artifact, None where the run has none; raises `ArtifactError` where it has several."""
        with store_errors(self.address):
            direct = posixpath.join(self.path, task, artifact)
            if self.files.exists(direct):
                return direct
            folder = posixpath.dirname(direct)
            salts = self.files.ls(folder, detail=True) if self.files.isdir(folder) else []
            inside = [posixpath.join(item["name"], artifact) for item in salts if item["type"] == "directory"]
            found = [path for path in inside if self.files.exists(path)]
        if len(found) > 1:
            raise ArtifactError(
                f"{self.address}: {task} wrote {artifact} {len(found)} times; which counts is not clear"
            )
        return found[0] if found else None

    def outputs(self) -> dict[str, str]:
        """Port -> path of what the stages wrote; some are missing where a run stopped early, or its pipeline is short.

        Raises `ArtifactError` where an output is there and an input of its stage is not: Kubeflow took that from an
        earlier run's cache.
        """
        found: dict[str, str] = {}
        for name in STAGES:
            stage = load_stage(name)
            paths = {port: self._first(TASKS[name], port) for port in stage.outputs}
            written = {port: path for port, path in paths.items() if path is not None}
            if written and (missing := [port for port in stage.inputs if port not in found]):
                raise ArtifactError(
                    f"{self.address} has {name} but not its input {missing[0]}, which an earlier run computed: "
                    "run it again without the cache"
                )
            found |= written
        if not found:
            raise ArtifactError(f"{self.address} holds no output of a stage: name the folder of one run")
        return found

    def _first(self, tasks: Sequence[str], artifact: str) -> str | None:
        return next((path for task in tasks if (path := self.find(task, artifact)) is not None), None)

    def copy(self, copies: Mapping[str, Path]) -> None:
        """Copy files or folders, path here -> path on this disk; raises `ArtifactError` for a file cut short."""
        with store_errors(self.address):
            plan = [item for source, target in copies.items() for item in self._plan(source, target)]
            for _ in track(map_in_order(self._copy_file, plan), "fetch", total=len(plan)):
                pass

    def _plan(self, source: str, target: Path) -> Iterator[tuple[str, Path, int]]:
        for name, info in self.files.find(source, detail=True).items():
            inner = posixpath.relpath(name, source)
            yield name, target if inner == "." else target / inner, int(info["size"])

    def _copy_file(self, item: tuple[str, Path, int]) -> None:
        name, target, size = item
        target.parent.mkdir(parents=True, exist_ok=True)
        self.files.get_file(name, str(target))
        if target.stat().st_size != size:
            raise ArtifactError(f"{name} was cut short ({target.stat().st_size} of {size} bytes): try again")


@contextmanager
def store_errors(address: str) -> Iterator[None]:
    """What a store says as one `ArtifactError`."""
    kinds: tuple[type[Exception], ...] = (OSError,)
    try:
        from botocore.exceptions import BotoCoreError, ClientError

        kinds = (OSError, BotoCoreError, ClientError)
    except ModuleNotFoundError:
        pass  # without the extra s3 there is no store but this disk
    try:
        yield
    except kinds as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{address} cannot be read ({reason}): check the address, AWS_ENDPOINT_URL and the keys of its store"
        ) from None
