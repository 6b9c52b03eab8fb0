"""The store itself: made once, however many meet it first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdpr.mlops.store import without_login

FIRST_USE = """
import sys
from mdpr.mlops.store import connect
print("ready", flush=True)
sys.stdin.readline()
print(connect().client.create_experiment(sys.argv[1]))
"""


def test_processes_that_meet_an_empty_store_at_once_make_it_together(tmp_path: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    crowd = [
        subprocess.Popen([sys.executable, "-c", FIRST_USE, name], cwd=tmp_path, env=environment, text=True, **pipes)
        for name in ("first", "second", "third")
    ]
    for process in crowd:
        assert process.stdout
        process.stdout.readline()
    answers = []
    for process in crowd:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in crowd:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
        answers.append(output.strip())
    assert sorted(answers) == ["1", "2", "3"]
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlruns"}


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("https://ann:secret@mlflow.example:8443/path", "https://mlflow.example:8443/path"),
    ],
)
def test_an_address_loses_its_login_and_nothing_else(uri: str, shown: str) -> None:
    assert without_login(uri) == shown
