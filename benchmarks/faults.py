"""The fault campaign: what a mistake, a signal or a changed file may destroy. Everything happens in a throw-away copy.

    python -m benchmarks.faults --json
    python -m benchmarks.faults --only outputs tampered

outputs     wrong paths for every output: foreign_files_deleted of foreign_files, over output_ways
bytes       all nine stages twice: artifacts_byte_identical of artifacts_compared (what holds times, ids of MLflow and
            measured latencies is named in `TIMED` and not compared)
tampered    a file of a finished run changed: tampered_refused of tampered_tried (exit code 2, one line)
signals     SIGTERM and SIGKILL at random moments of every stage: signals_survived of signals_tried (the output is the
            old one, the new one or absent; the same command then gives the same bytes)
drivers     DVC and the subprocess runner of Kubeflow killed: drivers_ended of drivers_tried (no stage goes on)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import device_name, emit
from benchmarks.tampering import copy_of, tampered_files
from mdpr.artifacts import sha256
from mdpr.errors import MdprError
from mdpr.progress import track
from mdpr.stages.stage import STAGES, load_stage

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "mlflow", "dvc")
SETTINGS = {
    "max_images_per_class: 1000": "max_images_per_class: 60",
    "imbalance_ratio: 100": "imbalance_ratio: 10",
    "val_images_per_class: 200": "val_images_per_class: 10",
    "epochs: 8": "epochs: 1",
}
# Files with times, ids of MLflow or measured latencies, and those that quote them.
TIMED = ("run.json", "lineage.json", "report.html", "registration.json", "promotion.json")
FILE_OUTPUTS = ("registration", "promotion")
GRACE_S = 90  # for a stage to end after its driver
Figures = dict[str, float]


@dataclass(frozen=True)
class Project:
    """A copy of the repository in a folder of its own, with a finished run in runs/first."""

    root: Path

    @classmethod
    @contextlib.contextmanager
    def copied(cls) -> Iterator[Project]:
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
            project.run_all("first")
            yield project

    def path(self, port: str, run: str = "first") -> Path:
        return self.root / "runs" / run / (f"{port}.json" if port in FILE_OUTPUTS else port)

    def arguments(self, stage: str, run: str = "first", outputs: str | None = None) -> list[str]:
        """The command line of a stage on the files of `run`, its outputs in those of `outputs`."""
        loaded = load_stage(stage)
        paths = {port: self.path(port, run) for port in loaded.inputs}
        paths |= {port: self.path(port, outputs or run) for port in loaded.outputs}
        return [stage, *(part for port, path in paths.items() for part in (f"--{port}", str(path)))]

    def environment(self, **more: str) -> dict[str, str]:
        own = {
            "HOME": str(self.root.parent),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.root.parent}/mlflow.db",
            "PYTHONPATH": os.pathsep.join((str(self.root / "src"), str(self.root))),
            "CUDA_VISIBLE_DEVICES": "",
        }
        return os.environ | own | more

    def start(self, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mdpr", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment(**environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], **environment: str) -> tuple[int, str]:
        """Exit code and stderr of `mdpr ARGUMENTS`."""
        process = self.start(arguments, **environment)
        _, errors = process.communicate()
        return process.returncode, errors

    def run_all(self, run: str, **environment: str) -> None:
        for stage in STAGES:
            code, errors = self.run(self.arguments(stage, run), **environment)
            assert code == 0, f"{stage} failed: {errors[-2000:]}"

    def call(self, arguments: list[str]) -> str:
        """How `mdpr ARGUMENTS` ends in this process: `refused` in one line, `accepted`, or the error it ran into."""
        from mdpr.cli import cli

        quiet = io.StringIO()
        try:
            with contextlib.chdir(self.root), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                cli.main(arguments, standalone_mode=False)
        except MdprError as error:
            return "refused" if "\n" not in str(error) else f"several lines: {error}"
        except Exception as error:
            return f"traceback: {type(error).__name__}: {error}"
        return "accepted"


def tell(line: str, *values: object) -> None:
    """A line for the person who waits; the logger's stream is caught by `Project.call`."""
    print(line % values, file=sys.__stderr__)


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


def wrong_outputs(project: Project) -> list[str]:
    """Paths that an output must not take: the user's folders and files, folders above, inputs, names too long."""
    (project.root / "alias").symlink_to("data")
    (project.root / "pictures").symlink_to(project.root.parent / "photos")
    return [
        *("data", "./data/", "data/../data", "alias", "alias/embedded", str(project.root / "data"), "src", "mlflow"),
        *("..", ".", "", "data/..", "../..", "/", "../../..", str(project.root), str(project.root.parent)),
        *("photos", "../photos", "pictures", "notes", "notes/deep", "data/embedded/fashion-mnist/new"),
        *("data/embedded/fashion-mnist", "README.md", "params.yaml", "mlflow/promotion.yaml", "dvc.yaml", "n" * 256),
        *("runs", "runs/first", "shaped", "annotated", "mine", "busy", "site"),
    ]


def outputs(project: Project, seed: int) -> Figures:
    """Every output of every stage under every wrong path."""
    root = project.root
    mine = ("photos/1.png", "notes/deep/a.txt", "mine.failed/a.txt", ".busy.mdpr/a.txt", "site/index.html", ".git/HEAD")
    for name in (*mine, "../photos/2.png", "shaped/knowledge.json", "shaped/config.json", "shaped/card.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    ways = wrong_outputs(project)
    shutil.copytree(project.path("features"), root / "annotated")
    (root / "annotated" / "notes.txt").write_text("mine")
    before, ends = contents(root.parent), dict[str, int]()
    ports = [(stage, port) for stage in STAGES for port in load_stage(stage).outputs]
    for stage, port in track(ports, "outputs"):
        inputs = {str(project.path(name)) for name in load_stage(stage).inputs}
        for way in [*ways, *sorted(inputs)]:
            arguments = project.arguments(stage, "first", "unused")
            arguments[arguments.index(f"--{port}") + 1] = way
            end = project.call(arguments)
            ends[end] = ends.get(end, 0) + 1
            if end != "refused":
                tell("%s --%s %s: %s", stage, port, way[:60], end)
    after = contents(root.parent)
    gone = [name for name, digest in before.items() if after.get(name) != digest]
    return {
        "foreign_files_deleted": len(gone),
        "foreign_files": len(before),
        "output_ways": len(ways),
        "outputs_refused": ends.get("refused", 0),
        "outputs_tried": sum(ends.values()),
    }


def same_bytes(project: Project, seed: int) -> Figures:
    """All nine stages again, with another order of hashing."""
    project.run_all("second", PYTHONHASHSEED=str(seed + 1))
    first, second = artifacts(project, "first"), artifacts(project, "second")
    different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    for name in different:
        tell("%s differs between two runs", name)
    return {"artifacts_byte_identical": len(first) - len(different), "artifacts_compared": len(first)}


def tampered(project: Project, seed: int) -> Figures:
    """Each file of `benchmarks.tampering` given to the stage that reads it."""
    refused, cases = 0, list(tampered_files())
    for case in track(cases, "tampered"):
        copy_of(project.root / "runs" / "first", project.root / "runs" / "changed", case)
        arguments = (
            ["report", "render", "--data", "runs/changed", "--output", "page.html"]
            if case.reader == "report"
            else project.arguments(case.reader, "changed", "unused")
        )
        end = project.call(arguments)
        refused += end == "refused"
        if end != "refused":
            tell("%s: %s", case.name, end[:300])
        shutil.rmtree(project.root / "runs" / "unused", ignore_errors=True)
    return {"tampered_refused": refused, "tampered_tried": len(cases)}


def signals(project: Project, seed: int, per_stage: int) -> Figures:
    """Each stage killed at random moments, its output there before or not, then run to its end."""
    draw, survived, tried = random.Random(seed), 0, 0  # noqa: S311
    for stage in track(list(STAGES), "signals"):
        started = time.monotonic()
        code, errors = project.run(project.arguments(stage, "first", "killed"))
        assert code == 0, errors
        lasts_s, expected = time.monotonic() - started, artifacts(project, "killed", stage)
        for number in range(per_stage):
            if draw.random() < 0.5:
                shutil.rmtree(project.root / "runs" / "killed", ignore_errors=True)
            process = project.start(project.arguments(stage, "first", "killed"))
            time.sleep(draw.uniform(0, lasts_s))
            process.send_signal((signal.SIGKILL, signal.SIGTERM)[number % 2])
            process.communicate()
            left = artifacts(project, "killed", stage)
            code, errors = project.run(project.arguments(stage, "first", "killed"))
            after = artifacts(project, "killed", stage)
            hidden = [path.name for path in (project.root / "runs" / "killed").glob(".*")]
            ports = load_stage(stage).outputs
            whole = all(of_port(left, port) in ({}, of_port(expected, port)) for port in ports)
            tried += 1
            if code == 0 and after == expected and whole and not hidden:
                survived += 1
            else:
                what = f"exit code {code}, whole {whole}, same {after == expected}, left {hidden}: {errors[-300:]}"
                tell("%s, signal %d: %s", stage, number, what)
    return {"signals_survived": survived, "signals_tried": tried}


def of_port(digests: Mapping[str, str], port: str) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name.startswith(f"{port}/")}


def drivers(project: Project, seed: int) -> Figures:
    """DVC and `mdpr pipeline run` killed alone while a stage runs: the stage must end too."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    shutil.rmtree(project.root / ".git", ignore_errors=True)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], [*git, "add", "-A"], [*git, "commit", "-qm", "x"]):
        subprocess.run(command, cwd=project.root, env=project.environment(), check=True, capture_output=True)
    runner = [sys.executable, "-m", "mdpr", "pipeline", "run", "--output", "local_outputs"]
    commands = {"dvc": ["dvc", "repro"], "runner": runner}
    ended, tried, quiet = 0, 0, subprocess.DEVNULL
    for name, command in commands.items():
        for number in (signal.SIGKILL, signal.SIGTERM):
            tried += 1
            environment = project.environment()
            process = subprocess.Popen(command, cwd=project.root, env=environment, stdout=quiet, stderr=quiet)
            children = set[int]()
            deadline = time.monotonic() + GRACE_S
            while not children and time.monotonic() < deadline and process.poll() is None:
                children = stages_of(project.root)
                time.sleep(0.2)
            time.sleep(1 + tried)
            process.send_signal(number)
            process.wait()
            deadline = time.monotonic() + GRACE_S
            while stages_of(project.root) and time.monotonic() < deadline:
                time.sleep(0.2)
            left = stages_of(project.root)
            ended += bool(children) and not left
            if left or not children:
                tell("%s, signal %d: seen %s, left %s", name, number, children, left)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
    return {"drivers_ended": ended, "drivers_tried": tried}


def stages_of(root: Path) -> set[int]:
    """Processes that run a stage for the project: of its environment, and neither DVC nor the runner."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        is_ours = f"HOME={root.parent}".encode() in environment
        is_stage = any(word.startswith((b"DVC_STAGE=", b"MDPR_DRIVER_PID=")) for word in environment)
        if is_ours and is_stage and not words[0].endswith(b"sh"):
            found.add(int(entry.name))
    return found


def main() -> None:
    sections: dict[str, Callable[[Project, int], Figures]] = {
        "outputs": outputs,
        "bytes": same_bytes,
        "tampered": tampered,
        "signals": lambda project, seed: signals(project, seed, parsed.signals),
        "drivers": drivers,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(sections), default=list(sections), metavar="SECTION")
    parser.add_argument("--signals", type=int, default=7, help="per stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parsed = parser.parse_args()
    figures: Figures = {}
    with Project.copied() as project:
        os.environ |= {
            key: value for key, value in project.environment().items() if key in ("HOME", "MLFLOW_TRACKING_URI")
        }
        for name in parsed.only:
            figures |= sections[name](project, parsed.seed)
    emit("faults", device_name(), PACKAGES, figures, [figures], parsed.json)


if __name__ == "__main__":
    main()
