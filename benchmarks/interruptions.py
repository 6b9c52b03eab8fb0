"""Stages and their drivers ended at random moments, by SIGTERM and by SIGKILL."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.trial_project import Figures, Project, artifacts, tell
from mdpr.progress import track
from mdpr.project import environment as with_scripts
from mdpr.stages.stage import load_stage

CHEAPER = {"evaluate": ["--set", "evaluate.ablations=false"]}  # a try runs the stage to its end
GRACE_S = 90  # for a stage to end after its driver


def signals(project: Project, seed: int, stages: Sequence[str], per_stage: int) -> Figures:
    """Each stage killed at random moments, its output there before or not, then run to its end.

    It survives if its output is the old one, the new one or absent, and the same command then gives the same bytes.
    """
    survived = tried = 0
    for stage in track(list(stages), "signals"):
        draw = random.Random(f"{seed} {stage}")  # noqa: S311
        arguments = [*project.arguments(stage, "first", "killed"), *CHEAPER.get(stage, ())]
        started = time.monotonic()
        code, errors = project.run(arguments)
        assert code == 0, errors
        lasts_s, expected = time.monotonic() - started, artifacts(project, "killed", stage)
        for number in range(per_stage):
            if draw.random() < 0.5:
                shutil.rmtree(project.root / "runs" / "killed", ignore_errors=True)
            process = project.start(arguments)
            time.sleep(draw.uniform(0, lasts_s))
            process.send_signal((signal.SIGKILL, signal.SIGTERM)[number % 2])
            process.communicate()
            left = artifacts(project, "killed", stage)
            code, errors = project.run(arguments)
            after = artifacts(project, "killed", stage)
            hidden = [path.name for path in (project.root / "runs" / "killed").glob(".*")]
            ports = load_stage(stage).outputs
            whole = all(_of_port(left, port) in ({}, _of_port(expected, port)) for port in ports)
            tried += 1
            if code == 0 and after == expected and whole and not hidden:
                survived += 1
            else:
                what = f"exit code {code}, whole {whole}, same {after == expected}, left {hidden}: {errors[-300:]}"
                tell("%s, signal %d: %s", stage, number, what)
    return {"signals_survived": survived, "signals_tried": tried}


def _of_port(digests: Mapping[str, str], port: str) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name.startswith(f"{port}/")}


def drivers(project: Project, seed: int) -> Figures:
    """DVC and `mdpr pipeline run` killed while a stage runs, without the stage: it must end too."""
    draw = random.Random(seed)  # noqa: S311
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    shutil.rmtree(project.root / ".git", ignore_errors=True)
    environment = with_scripts() | project.own_environment
    for command in (["git", "init", "-q"], [*git, "add", "-A"], [*git, "commit", "-qm", "x"]):  # .dvc/ is the copy's
        subprocess.run(command, cwd=project.root, env=environment, check=True, capture_output=True)
    runner = [sys.executable, "-m", "mdpr", "pipeline", "run", "--output", "local_outputs"]
    commands = {"dvc": [sys.executable, "-m", "dvc", "repro"], "runner": runner}
    survived, tried, quiet = 0, 0, subprocess.DEVNULL
    for name, command in commands.items():
        for number in (signal.SIGKILL, signal.SIGTERM):
            tried += 1
            process = subprocess.Popen(command, cwd=project.root, env=environment, stdout=quiet, stderr=quiet)
            children = set[int]()
            deadline = time.monotonic() + GRACE_S
            while not children and time.monotonic() < deadline and process.poll() is None:
                children = _stages_of(project.root)
                time.sleep(0.2)
            time.sleep(draw.uniform(0, 10))
            process.send_signal(number)
            process.wait()
            deadline = time.monotonic() + GRACE_S
            while _stages_of(project.root) and time.monotonic() < deadline:
                time.sleep(0.2)
            left = _stages_of(project.root)
            survived += bool(children) and not left
            if left or not children:
                tell("%s, signal %d: seen %s, left %s", name, number, children, left)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
    return {"signals_survived": survived, "signals_tried": tried}


def _stages_of(root: Path) -> set[int]:
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
