"""`mdpr pipeline fetch`: the outputs of a pipeline run, brought into the DVC workspace of the working folder.

    mdpr pipeline fetch local_outputs/mdpr-training-2026-01-31-12-00-00-000000
    mdpr pipeline fetch s3://mlpipeline/v2/artifacts/mdpr-training/5df0cd85-5615-4b99-8c17-a16f018c6819
    mdpr pipeline fetch 5df0cd85-5615-4b99-8c17-a16f018c6819 --host http://localhost:8888

Each output goes where dvc.yaml has it, and params.yaml becomes the run's own; then `dvc commit --force` records them as
if they had been computed here, and `dvc push` shares them. The folder of a run, on this disk or in a cluster's store:

    FOLDER/TASK/ARTIFACT         one machine: `<pipeline>-<time>` in --output
                                 (kfp/local/executor_input_utils.py, construct_local_task_root)
    FOLDER/TASK/SALT/ARTIFACT    a cluster: `<pipeline root>/<pipeline>/<run id>`, a salt per execution
                                 (kubeflow/pipelines, backend/src/v2/driver, provisionOutputs)

Parameters that tasks hand on are in neither; the run's own are the artifact `settings` of `configure`.
"""

from __future__ import annotations

import posixpath
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import click
from dvc.exceptions import DvcException
from dvc.repo import Repo
from fsspec import AbstractFileSystem
from scmrepo.exceptions import SCMError

from mdpr.artifacts import read_model_config
from mdpr.data.intake import map_in_order
from mdpr.data.object_store import open_address, store_errors
from mdpr.errors import ArtifactError, ConfigError, one_line
from mdpr.params import Params, dump_yaml, load_params
from mdpr.progress import track
from mdpr.stages.outputs import whole_or_not_at_all
from mdpr.stages.stage import STAGES, load_stage
from pipelines.submit import Connection, connection_options, translate_errors

DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"  # of Kubeflow, unless the config map kfp-launcher names another
HEADER = "# The settings of {run}, brought here by `mdpr pipeline fetch`.\n"
PARAMS = "params.yaml"
SETTINGS = ("configure", "settings")
# In some variants another task has the last word on a stage's output: it comes first here.
TASKS: Mapping[str, Sequence[str]] = {name: (name,) for name in STAGES} | {
    "describe": ("merge", "describe"),
    "tune": ("select", "trainjob", "tune"),
}


# --- the folder of a run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run's artifacts: `path` in the file system `files`, `address` for messages."""

    files: AbstractFileSystem
    path: str
    address: str

    @classmethod
    def open(cls, address: str) -> RunFolder:
        """Of a path or an fsspec address; raises `ArtifactError` if nothing is there."""
        plain = urlsplit(address)._replace(query="").geturl() if "://" in address else address
        files, path = open_address(plain)
        with store_errors(address, ArtifactError):
            if not files.isdir(path):
                raise ArtifactError(f"{address}: there is no such folder: name that of one run")
        return cls(files, path, address)

    @property
    def name(self) -> str:
        """The run's own: with its time on one machine, the run's id on a cluster."""
        return posixpath.basename(self.path)

    def find(self, task: str, artifact: str) -> str | None:
        """Path of an artifact, None if the run has none; raises `ArtifactError` if it has several."""
        with store_errors(self.address, ArtifactError):
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
        """Port -> path of what the stages wrote; some are missing if a run stopped early, or its pipeline is short.

        Raises `ArtifactError` if an output is there and an input of its stage is not: Kubeflow took that from an
        earlier run's cache.
        """
        found: dict[str, str] = {}
        for name in STAGES:
            stage = load_stage(name)
            paths = {
                port: next((path for task in TASKS[name] if (path := self.find(task, port))), None)
                for port in stage.outputs
            }
            written = {port: path for port, path in paths.items() if path}
            if written and (missing := [port for port in stage.inputs if port not in found]):
                raise ArtifactError(
                    f"{self.address} has {name} but not its input {missing[0]}, which an earlier run computed: "
                    "run it again without the cache"
                )
            found |= written
        if not found:
            raise ArtifactError(f"{self.address} holds no output of a stage: name the folder of one run")
        return found

    def copy(self, copies: Mapping[str, Path]) -> None:
        """Copy files or folders, path here -> path on this disk; raises `ArtifactError` for a file cut short."""
        with store_errors(self.address, ArtifactError):
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


# --- the DVC workspace ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workspace:
    """The project of the working folder."""

    repo: Repo

    @property
    def params(self) -> Path:
        return Path(self.repo.root_dir) / PARAMS

    def name(self, path: Path) -> str:
        """A path of the project as people write it."""
        return path.relative_to(self.repo.root_dir).as_posix()

    def places(self) -> dict[str, Path]:
        """Output port -> path, as the commands in dvc.yaml name it."""
        commands = {stage.addressing: shlex.split(str(stage.cmd)) for stage in self.repo.index.stages if stage.cmd}
        found: dict[str, Path] = {}
        for name in STAGES:
            words = commands.get(name)
            if words is None:
                raise ConfigError(f"dvc.yaml has no stage {name}: run from a project of mdpr")
            for port in load_stage(name).outputs:
                if f"--{port}" not in words[:-1]:
                    raise ConfigError(f"dvc.yaml: the command of {name} has no --{port}")
                found[port] = Path(self.repo.root_dir) / words[words.index(f"--{port}") + 1]
        return found

    def uncommitted(self, paths: Iterable[Path]) -> list[Path]:
        """Those of `paths` that hold what neither DVC nor Git has: changed outputs, a changed params.yaml."""
        outs = {Path(out.fs_path): out for out in self.repo.index.outs}
        return [path for path in paths if path.exists() and self._is_changed(path, outs.get(path))]

    def _is_changed(self, path: Path, out: object) -> bool:
        if out is not None:
            return bool(out.status())  # type: ignore[attr-defined]  # dvc.output.Output
        scm = self.repo.scm
        try:
            staged, unstaged, untracked = scm.status(untracked_files="normal")
        except NotADirectoryError:  # a committed folder is a file now, and the library does not look further
            return True
        inside = path.relative_to(scm.root_dir).as_posix()
        return inside in {*unstaged, *untracked, *(name for names in staged.values() for name in names)}


@contextmanager
def open_workspace() -> Iterator[Workspace]:
    """The DVC project around the working folder, held against a `dvc repro` at the same time; raises `ConfigError`."""
    try:
        with Repo() as repo, repo.lock:
            yield Workspace(repo)
    except (DvcException, SCMError) as error:
        raise ConfigError(
            f"this is no DVC workspace to fetch into ({one_line(error)}): run from the project's folder"
        ) from None


# --- the command ----------------------------------------------------------------------------------------------


def fetch(folder: RunFolder, workspace: Workspace, *, force: bool) -> list[Path]:
    """Bring the outputs and the settings of a run into the workspace, all or none; returns what was written.

    With `force` an earlier output and params.yaml are overwritten though they are not committed; anything else that
    is in an output's place is set aside. Raises `ArtifactError` if the run lacks something, `ConfigError` if work that
    is not committed would be lost.
    """
    found, places = folder.outputs(), workspace.places()
    settings = folder.find(*SETTINGS)
    if settings is None:
        raise ArtifactError(f"{folder.address} has no {'/'.join(SETTINGS)}: the run failed before it began")
    targets = {port: places[port] for port in found}
    outputs = {**targets, "params": workspace.params}
    paths = list(outputs.values())
    if not force and (changed := workspace.uncommitted(paths)):
        names = ", ".join(map(workspace.name, changed))
        raise ConfigError(f"{names}: changed and not committed; commit them (dvc commit, git commit), or use --force")
    writing = whole_or_not_at_all(outputs, overwrites=["params"], set_aside=targets if force else ())
    with writing as partial, tempfile.TemporaryDirectory() as name:
        copies = dict(zip(targets, partial, strict=False))
        used = Path(name) / workspace.params.name
        folder.copy({settings: used} | {found[port]: copies[port] for port in found})
        params = load_params(used)
        if "model" in copies:  # a sweep chose among several settings of tune: those of the model count
            params = replace(params, tune=read_model_config(copies["model"]).tune)
        partial[-1].write_text(settings_text(params, workspace.params, folder.name), encoding="utf-8")
    return paths


def settings_text(params: Params, present: Path, run: str) -> str:
    """params.yaml with `params`; as it is, comments and all, if it has the same values already."""
    if present.is_file() and load_params(present) == params:
        return present.read_text("utf-8")
    return HEADER.format(run=run) + dump_yaml(params.dump())


def run_address(connection: Connection, run_id: str, default_root: str) -> str:
    """Address of the folder of a run: below the pipeline root that the run names, or `default_root`."""
    with translate_errors(connection.host):
        run = connection.connect().client.get_run(run_id)
    config = run.runtime_config
    root = RunFolder.open((config.pipeline_root if config else None) or default_root)
    with store_errors(root.address, ArtifactError):
        found = [path for path in root.files.glob(f"{root.path}/*/{run_id}") if root.files.isdir(path)]
    if len(found) != 1:
        raise ArtifactError(f"{root.address} has no folder of run {run_id}: name the cluster's pipeline root by --root")
    return str(root.files.unstrip_protocol(found[0]))


@click.command("fetch")
@click.argument("run")
@connection_options(required=False)
@click.option(
    "--root", default=DEFAULT_ROOT, show_default=True, help="pipeline root of the cluster, if a run names none"
)
@click.option(
    "--force",
    is_flag=True,
    help="Overwrite what is changed and not committed; files that no stage wrote are set aside.",
)
def fetch_command(run: str, connection: Connection | None, root: str, force: bool) -> None:
    """Bring what RUN made into this DVC workspace: a folder, an address such as s3://..., or an id with --host."""
    folder = RunFolder.open(run_address(connection, run, root) if connection else run)
    with open_workspace() as workspace:
        written = fetch(folder, workspace, force=force)
        for path in written:
            click.echo(f"wrote {workspace.name(path)}")
        if left := [workspace.name(path) for path in workspace.places().values() if path not in written]:
            click.echo(f"the run has no {', '.join(left)}: what is here is not the run's")
    click.echo("next: dvc commit --force, git commit, dvc push")
