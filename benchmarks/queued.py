"""Queued DVC experiments: whether the project's own MLflow store has the finished run of each.

    python -m benchmarks.queued PROJECT tune.epochs=1 tune.epochs=2

One experiment per setting. `queue_runs_lost` counts those whose training and test figures the store does not have.
PROJECT must have been run once (`dvc repro`, then a commit), and keeps its runs in mlflow.db.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

FINISHED = """SELECT tag.value FROM tags tag JOIN runs USING (run_uuid) JOIN latest_metrics metric USING (run_uuid)
WHERE tag.key = 'dvc.experiment' AND runs.status = 'FINISHED' AND metric.key = 'test/fused/all'"""
LIMIT_S = 900.0


def queue_runs_lost(project: Path, settings: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Queue an experiment per setting (`section.key=value`, more after spaces), run all, count the runs not there."""

    def dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(
            command, cwd=project, env=environment and dict(environment), check=True, capture_output=True, text=True
        ).stdout

    names = [f"queued-{number}" for number, _ in enumerate(settings)]
    for name, setting in zip(names, settings, strict=True):
        dvc("exp", "run", "--queue", "--name", name, *(f"--set-param={pair}" for pair in setting.split()))
    dvc("queue", "start")
    deadline_s = time.monotonic() + LIMIT_S
    while {"Queued", "Running"} & set(dvc("queue", "status").split()) and time.monotonic() < deadline_s:
        time.sleep(2)
    return len(runs_lost(project, names))


def runs_lost(project: Path, names: Iterable[str]) -> list[str]:
    """The experiments among `names` that have no finished run with test figures in the project's mlflow.db."""
    with closing(sqlite3.connect(project / "mlflow.db")) as store:
        found = {name for (name,) in store.execute(FINISHED)}
    return [name for name in names if name not in found]


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs that queued experiments lose.")
    parser.add_argument("project", type=Path)
    parser.add_argument("settings", nargs="+", metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    print(json.dumps({"queue_runs_lost": queue_runs_lost(arguments.project, arguments.settings)}))


if __name__ == "__main__":
    main()
