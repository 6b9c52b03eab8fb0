"""The start of this process: by torchrun, as one of several; by DVC, in a copy of the project; by a driver that it
must not outlive."""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mdpr.errors import ConfigError

logger = logging.getLogger(__name__)

DRIVER_PID = "MDPR_DRIVER_PID"  # set by `mdpr pipeline run` for its tasks
# Set by DVC for the commands it runs.
DVC_STAGE = "DVC_STAGE"
DVC_ROOT = "DVC_ROOT"  # the project itself, even for a command in a temporary copy of it
DVC_EXPERIMENT = "DVC_EXP_NAME"  # in `dvc exp run` only
GRACE_S = 60  # for saving the work after SIGTERM
COLLECT_AFTER = 10_000  # new objects; Python: 700


@dataclass(frozen=True)
class Launch:
    """`rank` of `world` processes, `local_rank` on its machine (the number of its GPU)."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes outputs, logs, tracks and shows progress."""
        return self.rank == 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """torchrun's RANK, WORLD_SIZE and LOCAL_RANK; a single process if they are not set.

    Raises `ConfigError` if they contradict each other.
    """
    world = environment.get("WORLD_SIZE", "1")
    rank = environment.get("RANK", "0") if world != "1" else "0"
    local_rank = environment.get("LOCAL_RANK", "0") if world != "1" else "0"
    if not (world.isdigit() and rank.isdigit() and local_rank.isdigit() and int(rank) < int(world)):
        raise ConfigError(f"RANK = {rank!r} and WORLD_SIZE = {world!r} do not fit: start the processes with torchrun")
    return Launch(int(rank), int(world), int(local_rank))


def in_project(path: Path) -> Path:
    """`path`, below the project itself if it is relative and this process runs in a temporary copy of the project.

    `dvc exp run --temp` and `--queue` run in such a copy (`.dvc/tmp/exps/...`), which DVC deletes afterwards.
    """
    here, root = Path.cwd(), os.environ.get(DVC_ROOT)
    copy = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    if root is None or copy is None or (Path(root).resolve() / ".dvc" / "tmp") not in copy.parents:
        return path
    return Path(root) / here.relative_to(copy) / path


def experiment_name() -> str | None:
    """The DVC experiment that this process is part of, if any."""
    return os.environ.get(DVC_EXPERIMENT) or None


def address_space_mb() -> float:
    """The limit of this process's address space (`ulimit -v`), infinite if it has none.

    Some libraries end the process by a signal when they cannot reserve enough memory: check this first.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit / 10**6


def collect_rarely() -> None:
    """Start Python's garbage collector only after `COLLECT_AFTER` new objects, for the rest of this process.

    torch, open_clip and MLflow make a million objects that stay. To search them again and again while they are imported
    takes a quarter of the start; with this limit, a ninth.
    """
    gc.set_threshold(COLLECT_AFTER)


def end_with_driver() -> None:
    """Send this process SIGTERM once the driver that started it has ended, even by SIGKILL; then SIGKILL.

    Drivers are DVC and `mdpr pipeline run`. A process that a person started (a shell, nohup) has none. Needs Linux.
    """
    pid = _driver_pid()
    if pid is None or not hasattr(os, "pidfd_open"):
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:  # ended already
        os.kill(os.getpid(), signal.SIGTERM)
    except OSError:  # an old kernel
        return
    else:
        threading.Thread(target=_wait_and_end, args=(descriptor,), daemon=True).start()


def _driver_pid() -> int | None:
    if os.environ.get(DRIVER_PID, "").isdigit():
        return int(os.environ[DRIVER_PID])
    if DVC_STAGE not in os.environ:
        return None
    pid = os.getppid()
    try:  # DVC starts a shell that starts this process: the nearest ancestor without the variable is DVC itself
        while f"\0{DVC_STAGE}=".encode() in b"\0" + _read(pid, "environ"):
            pid = int(_read(pid, "stat").rpartition(b")")[2].split()[1])
    except (OSError, ValueError):
        return None
    return pid


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def _wait_and_end(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)  # readable once the process has ended
    poll.poll()
    logger.warning("the process that started this stage has ended: stopping")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
