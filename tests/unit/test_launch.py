"""How a process was started, and that it does not outlive its driver."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mdpr.errors import ConfigError
from mdpr.launch import DRIVER_PID, DVC_ROOT, DVC_STAGE, in_project, read_launch

CHILD = (
    "import os, sys, time; from pathlib import Path; from mdpr.launch import end_with_driver\n"
    "end_with_driver(); Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(300)"
)
# Starts a shell that starts the child, as DVC does, and waits.
DRIVER = (
    "import os, subprocess, sys\n"
    "variables = dict(pair.split('=') for pair in sys.argv[3:])\n"
    "variables = {key: value.replace('SELF', str(os.getpid())) for key, value in variables.items()}\n"
    'command = \'"$0" -c "$1" "$2"; exit\'\n'
    "subprocess.run(['/bin/sh', '-c', command, sys.executable, sys.argv[1], sys.argv[2]], env=os.environ | variables)"
)


def start(tmp_path: Path, *variables: str) -> tuple[subprocess.Popen[bytes], int]:
    """A driver and the process id of the child of its shell."""
    note = tmp_path / "pid"
    environment = {key: value for key, value in os.environ.items() if key not in (DRIVER_PID, DVC_STAGE)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, CHILD, str(note), *variables], env=environment)
    while not note.exists() or not note.read_text():
        assert driver.poll() is None
    return driver, int(note.read_text())


def ends(pid: int, within_ms: int) -> bool:
    poll = select.poll()
    try:
        poll.register(os.pidfd_open(pid), select.POLLIN)
    except ProcessLookupError:
        return True
    return bool(poll.poll(within_ms))


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("variable", [f"{DVC_STAGE}=tune", f"{DRIVER_PID}=SELF"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_ends_with_the_driver_that_started_it(tmp_path: Path, variable: str, number: int) -> None:
    driver, child = start(tmp_path, variable)
    driver.send_signal(number)
    driver.wait()
    assert ends(child, within_ms=60_000)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_a_stage_that_a_person_started_outlives_the_shell(tmp_path: Path) -> None:
    driver, child = start(tmp_path)
    driver.kill()
    driver.wait()
    assert not ends(child, within_ms=1_000)
    os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_a_driver_that_has_ended_before_is_noticed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = os.environ | {DRIVER_PID: str(gone.pid)}
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "pid")], env=environment, check=False)
    assert child.returncode == -signal.SIGTERM


def test_a_launch_that_contradicts_itself_is_refused() -> None:
    assert read_launch({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}).is_main is False
    assert read_launch({}).is_main
    with pytest.raises(ConfigError, match="RANK = '2'"):
        read_launch({"RANK": "2", "WORLD_SIZE": "2"})


@pytest.mark.parametrize("place", [".", "sub/folder"])
def test_state_of_a_temporary_copy_lies_in_the_project(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"
    for root in (tmp_path, copy):
        (root / ".dvc").mkdir(parents=True, exist_ok=True)
        (root / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv(DVC_ROOT, str(tmp_path))
    monkeypatch.chdir(copy / place)
    assert in_project(Path("data/a.sqlite")) == tmp_path / place / "data/a.sqlite"
    assert in_project(Path("/data/a.sqlite")) == Path("/data/a.sqlite")
    monkeypatch.chdir(tmp_path / place)
    assert in_project(Path("data/a.sqlite")) == Path("data/a.sqlite")


def test_a_project_inside_another_ones_stage_keeps_its_own_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    for root in (tmp_path, other):
        (root / ".dvc").mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv(DVC_ROOT, str(tmp_path))
    monkeypatch.chdir(other)
    assert in_project(Path("mlflow.db")) == Path("mlflow.db")
