"""A pod on this machine: a process in mount and user namespaces of its own (Linux; no Docker engine is needed).

What a container of the images sees, it sees: its user is the image's number and holds no capability, the root is
read-only but for the folders that components/Dockerfile makes, /tmp and what is mounted, and nothing of the host's
environment is left. The file system below is the host's, because that is where Python and its packages are.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

UID = 1000  # of components/Dockerfile: USER 1000:1000
EMPTY_DIRS = ("/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config")  # the launcher's, in each attempt anew
HOME, WORKDIR = "/home/mdpr", "/workspace"
WRITABLE = (HOME, WORKDIR, f"{WORKDIR}/data", "/tmp")  # noqa: S108 - of the image
IMAGE_FILES = ("params.yaml", "mlflow", "data/embedded")  # that the Dockerfile copies to the working folder
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "HOME": HOME, "USER": "mdpr"}
TERMINATION_GRACE_S = 30  # Kubernetes' default between SIGTERM and SIGKILL

# $1: an empty folder that becomes the root. $2: lines of HOST<tab>CONTAINER<tab>MODE. The rest: what to run in $3.
ENTER = r"""
set -e
root=$1 mounts=$2 workdir=$3; shift 3
mount -t tmpfs tmpfs "$root"
for entry in /*; do
  case $entry in /tmp|/home|/workspace|/kfp-workspace|/gcs|/s3|/minio|/lost+found) continue ;; esac
  if [ -L "$entry" ]; then cp -P "$entry" "$root$entry"
  elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
    case $entry in /proc|/dev|/sys) ;; *) mount -o remount,bind,ro "$root$entry" ;; esac
  fi
done
while IFS=$'\t' read -r host container mode; do
  if [ -d "$host" ]; then mkdir -p "$root$container"
  else mkdir -p "$(dirname "$root$container")"; touch "$root$container"; fi
  mount --bind "$host" "$root$container"
  [ "$mode" = rw ] || mount -o remount,bind,ro "$root$container"
done < "$mounts"
mkdir "$root/.old"
cd "$root"
pivot_root . .old
umount -l /.old
rmdir /.old
mount -o remount,ro /
cd "$workdir"
exec unshare --user --map-user=__UID__ --map-group=__UID__ setpriv --no-new-privs --bounding-set=-all -- "$@"
""".replace("__UID__", str(UID))


@dataclass(frozen=True)
class Ended:
    """How a container ended. `killed`: by a signal that its process could not answer, as when its pod is evicted."""

    code: int
    log: str
    timed_out: bool = False
    oom_killed: bool = False

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def unavailable() -> str:
    """Why no pod can run on this machine; "" if one can."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return "unshare and setpriv are not installed (util-linux)"
    with tempfile.TemporaryDirectory() as folder:
        ended = run_pod(["true"], {}, {}, Path(folder), Path(__file__).parents[2])
    return "" if ended.code == 0 else f"no namespaces for pods: {' '.join(ended.log.split())[:200]}"


class MemoryLimit:
    """A memory cgroup of the kernel for one pod, of version 1 or 2, whichever this machine has."""

    def __init__(self, quantity: str) -> None:
        limit_bytes = int(float(quantity[:-2]) * 1024 ** (1 + "KMGT".index(quantity[-2])))  # 64Mi
        first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        base, name = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
        self.folder = base / f"mdpr-pod-{uuid.uuid4().hex[:12]}"
        self.folder.mkdir()
        (self.folder / name).write_text(str(limit_bytes))
        if base == second:  # as kubelet sets it since Kubernetes 1.28: nothing of the container is left
            (self.folder / "memory.oom.group").write_text("1")
            (self.folder / "memory.swap.max").write_text("0")
        self._events = self.folder / ("memory.events" if base == second else "memory.oom_control")

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed for their memory."""
        counts = dict(line.split() for line in self._events.read_text().splitlines())
        return int(counts["oom_kill"])

    def remove(self) -> None:
        with suppress(OSError):  # a process is still on its way out
            self.folder.rmdir()


@cache
def memory_unlimited() -> str:
    """Why no limit of memory can be set on this machine; "" if one can."""
    try:
        MemoryLimit("1Gi").remove()
    except OSError as error:
        return f"no memory cgroup can be made here ({error}): needs root and the controller memory"
    return ""


def run_pod(
    command: Sequence[str],
    environment: Mapping[str, str],
    mounts: Mapping[str, Path],
    scratch: Path,
    image: Path,
    *,
    timeout_s: float | None = None,
    memory: str = "",
    started: Callable[[subprocess.Popen[bytes]], object] = lambda process: None,
) -> Ended:
    """Run `command` in a pod of its own; `mounts` are writable: path in the container -> folder of the host.

    scratch    an empty folder for the root and the image's writable layer, gone with the pod
    image      the project whose files the image holds
    memory     the limit that it runs under, such as 2Gi, where this machine can set one; above it, it is killed
    started    told of the process (its own session) once it runs
    """
    lines = [(scratch / "layer" / path.strip("/"), path, "rw") for path in WRITABLE]
    for host, _, _ in lines:
        host.mkdir(parents=True)
    lines += [(image / name, f"{WORKDIR}/{name}", "ro") for name in IMAGE_FILES]
    lines += [(host, path, "rw") for path, host in mounts.items()]
    table, root, log = scratch / "mounts", scratch / "root", scratch / "log"
    table.write_text("".join(f"{host}\t{path}\t{mode}\n" for host, path, mode in lines), encoding="utf-8")
    root.mkdir()
    namespaces = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() != 0:
        namespaces += ["--user", "--map-root-user"]
    limit = MemoryLimit(memory) if memory and not memory_unlimited() else None
    if limit:
        joins = ["bash", "-c", 'echo $$ > "$0"; exec "$@"', str(limit.folder / "cgroup.procs")]
        namespaces = [*joins, *namespaces]
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"  # sbin: pivot_root
    inside = {**ENVIRONMENT, "PATH": path, "PYTHONPATH": f"{image / 'src'}", "PYTHONDONTWRITEBYTECODE": "1"}
    timed_out = False
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*namespaces, "bash", "-c", ENTER, "pod", str(root), str(table), WORKDIR, *command],
            env={**inside, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started(process)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(TERMINATION_GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    killed = False
    if limit:
        if killed := limit.kills > 0:
            with suppress(ProcessLookupError):  # version 1 kills one process: the rest of the container goes with it
                os.killpg(process.pid, signal.SIGKILL)
        limit.remove()
    return Ended(process.returncode, log.read_text(encoding="utf-8", errors="replace"), timed_out, killed)
