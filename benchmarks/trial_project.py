"""A throw-away copy of the project with a finished run, where a campaign may destroy whatever it can."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from mdpr.artifacts import sha256
from mdpr.cli import main as run_mdpr
from mdpr.stages.stage import STAGES, load_stage

PROJECT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "max_images_per_class: 1000": "max_images_per_class: 60",
    "imbalance_ratio: 100": "imbalance_ratio: 10",
    "val_images_per_class: 200": "val_images_per_class: 10",
    "epochs: 8": "epochs: 1",
}
# Files with times, ids of MLflow or measured latencies, and those that quote them.
TIMED = ("run.json", "lineage.json", "report.html", "registration.json", "promotion.json")
FILE_OUTPUTS = ("registration", "promotion")
Figures = Mapping[str, float]


@dataclass(frozen=True)
class End:
    """How a command ended, and all that it printed. A traceback has exit code 1."""

    code: int
    text: str

    @property
    def is_one_line(self) -> bool:
        """Whether it was refused as it should be: exit code 2, and the last line alone says why."""
        lines = self.text.splitlines()
        return self.code == 2 and bool(lines) and lines[-1].startswith("error: ")


def call_mdpr(arguments: list[str], folder: Path) -> End:
    """`mdpr ARGUMENTS` in this process, which has its libraries loaded already."""
    shown, log = io.StringIO(), logging.getLogger()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(shown),
        mock.patch.object(sys, "argv", ["mdpr", *arguments]),
        mock.patch.object(log, "handlers", []),  # the command makes its own, for the stderr of now
    ):
        try:
            run_mdpr()
        except SystemExit as end:
            return End(int(end.code or 0), shown.getvalue())
        except BaseException:  # whatever it is, a user would see it
            return End(1, shown.getvalue() + traceback.format_exc())
    raise AssertionError("mdpr ended without an exit code")


@dataclass(frozen=True)
class Project:
    """A copy of the repository in a folder of its own; a finished run is in runs/first."""

    root: Path

    @classmethod
    @contextlib.contextmanager
    def copied(cls, finished: bool = True) -> Iterator[Project]:
        """Gone when the block ends. Without `finished` there is no run in it."""
        with tempfile.TemporaryDirectory() as name:
            root = Path(name) / "home" / "project"
            names = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True).stdout
            for file in names.decode().split("\0"):
                if file and not file.startswith("tests/"):
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(PROJECT / file, root / file)
            params = root / "params.yaml"
            text = params.read_text()
            for old, new in SETTINGS.items():
                assert old in text, f"params.yaml has no {old}"
                text = text.replace(old, new)
            params.write_text(text)
            project = cls(root)
            with mock.patch.dict(os.environ, project.own_environment):
                if finished:
                    project.run_all("first")
                yield project

    def path(self, port: str, run: str = "first") -> Path:
        return self.root / "runs" / run / file_name(port)

    def arguments(self, stage: str, run: str = "first", outputs: str | None = None) -> list[str]:
        """The command line of a stage on the files of `run`, its outputs in those of `outputs`."""
        loaded = load_stage(stage)
        paths = {port: self.path(port, run) for port in loaded.inputs}
        paths |= {port: self.path(port, outputs or run) for port in loaded.outputs}
        return [stage, *(part for port, path in paths.items() for part in (f"--{port}", str(path)))]

    @property
    def own_environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.root.parent),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.root.parent}/mlflow.db",
            "PYTHONPATH": os.pathsep.join((str(self.root / "src"), str(self.root))),
            "CUDA_VISIBLE_DEVICES": "",
        }

    def start(self, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mdpr", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=os.environ | self.own_environment | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], **environment: str) -> tuple[int, str]:
        """Exit code and stderr of `mdpr ARGUMENTS` in a process of its own."""
        process = self.start(arguments, **environment)
        _, errors = process.communicate()
        return process.returncode, errors

    def run_all(self, run: str, **environment: str) -> None:
        for stage in STAGES:
            code, errors = self.run(self.arguments(stage, run), **environment)
            assert code == 0, f"{stage} failed: {errors[-2000:]}"

    def call(self, arguments: list[str]) -> End:
        return call_mdpr(arguments, self.root)


def file_name(port: str) -> str:
    """Where a run's folder holds the output of a port."""
    return f"{port}.json" if port in FILE_OUTPUTS else port


def tell(line: str, *values: object) -> None:
    """A line for the person who waits."""
    print(line % values, file=sys.__stderr__, flush=True)


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below `folder`."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def artifacts(project: Project, run: str, stage: str | None = None) -> dict[str, str]:
    """Digests of the files of a run that hold no times; of all stages or of one."""
    ports = [port for name in ([stage] if stage else STAGES) for port in load_stage(name).outputs]
    found: dict[str, str] = {}
    for port in ports:
        path = project.path(port, run)
        files = contents(path) if path.is_dir() else {path.name: sha256(path)} if path.exists() else {}
        found |= {f"{port}/{name}": digest for name, digest in files.items() if Path(name).name not in TIMED}
    return found
