"""Many classes described by a chat model, against a loopback server of known latency.

    python -m benchmarks.describe [--json] [--classes 1000] [--latency-ms 1000] [--concurrency 64] [--repeats 3]

The command is `mdpr describe`, a process of its own; the server (benchmarks/llm_stub.py) is another.

elapsed_over_ideal      first call to last answer, as the server sees it, over calls x latency / concurrency; the median
                        of --repeats runs, each with its own store
peak_mb                 memory of the command and its children together, in 10^6 bytes: the largest sum of their
                        proportional set sizes (Linux), read once per second (reading it more often slows them down)
rerun_calls, rerun_s    the same command once more: calls, and seconds of the whole command
repeated_calls_after_kill    the command killed (SIGKILL) at half and run again: calls that the server saw twice
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import device_name, emit, make_parser
from mdpr.artifacts import ClassInfo, Probe, write_classes, write_probe
from mdpr.params import DIMENSIONS

PACKAGES = ("langchain", "langchain-openai", "openai")
LOOK_EVERY_S = 1.0
POLL_EVERY_S = 0.1


@dataclass(frozen=True)
class Run:
    """One run of the command."""

    name: str
    calls: int
    repeated: int
    asking_s: float
    command_s: float
    peak_mb: float


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="runs from nothing; the median counts")
    arguments = parser.parse_args()

    calls = arguments.classes * len(DIMENSIONS)
    ideal_s = calls * arguments.latency_ms / 1000 / arguments.concurrency
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), [f"thing {index}" for index in range(arguments.classes)])
        whole: list[Run] = []
        for number in range(arguments.repeats):
            with server(arguments.latency_ms) as url:
                command = describe_command(Path(folder), f"whole{number}", url, arguments.concurrency)
                whole.append(run("whole", command, url))
                rerun = run("again", command, url)
        with server(arguments.latency_ms) as url:
            command = describe_command(Path(folder), "killed", url, arguments.concurrency)
            killed = run("killed at half", command, url, kill_at=calls // 2)
            rest = run("the rest", command, url)
    figures = {
        "elapsed_over_ideal": statistics.median(item.asking_s for item in whole) / ideal_s,
        "peak_mb": max(item.peak_mb for item in whole),
        "rerun_calls": rerun.calls,
        "rerun_s": rerun.command_s,
        "repeated_calls_after_kill": rest.repeated,
    }
    rows = [vars(item) for item in (*whole, rerun, killed, rest)]
    emit("describe", device_name(), PACKAGES, figures, rows, arguments.json)


def make_inputs(folder: Path, names: Sequence[str]) -> None:
    """classes.json and probe/ of a label set whose classes are each confused with the next."""
    items = [ClassInfo(index=index, name=name, train_images=1, shot="few") for index, name in enumerate(names)]
    classes = len(items)
    for name in ("prepared", "probe"):
        (folder / name).mkdir()
    write_classes(folder / "prepared", items)
    even_C = np.full(classes, 1 / classes, dtype=np.float32)
    probe = Probe(
        rival_C=np.roll(np.arange(classes), -1),
        zero_shot_C=even_C,
        log_prior_C=np.log(even_C),
        text_Cd=np.eye(8, dtype=np.float32)[np.arange(classes) % 8],
        image_Cd=np.eye(8, dtype=np.float32)[np.arange(classes) % 8],
        train_images_C=np.ones(classes, dtype=np.int64),
        logit_scale=100.0,
        fingerprint="none",
    )
    write_probe(folder / "probe", probe, np.eye(classes, dtype=np.float32), names)


def describe_command(folder: Path, name: str, url: str, concurrency: int) -> list[str]:
    llm = {"model": "stub", "base_url": url, "concurrency": concurrency, "store": str(folder / f"{name}.sqlite")}
    params = folder / f"{name}.yaml"
    params.write_text(json.dumps({"describe": {"provider": "llm", "strict": False, "llm": llm}}), encoding="utf-8")
    ports = {"prepared": folder / "prepared", "probe": folder / "probe", "knowledge": folder / name, "params": params}
    options = [text for port, path in ports.items() for text in (f"--{port}", str(path))]
    return [sys.executable, "-m", "mdpr", "describe", *options]


@contextmanager
def server(latency_ms: float) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.llm_stub", "--latency-ms", str(latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def run(name: str, command: list[str], url: str, kill_at: int | None = None) -> Run:
    """Run the command to its end, or kill it once the server has seen `kill_at` calls."""
    before = stats(url, reset=True)
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    looked = started
    while process.poll() is None:
        if time.perf_counter() - looked >= LOOK_EVERY_S:
            looked = time.perf_counter()
            peak = max(peak, sum(pss_bytes(pid) for pid in family(process.pid)))
        if kill_at is not None and stats(url)["calls"] >= kill_at:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(POLL_EVERY_S)
    command_s = time.perf_counter() - started
    assert process.stderr
    if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
        raise SystemExit(f"{name}: exit code {process.returncode}: {process.stderr.read()[-500:]}")
    after = stats(url)
    return Run(
        name=name,
        calls=int(after["calls"] - before["calls"]),
        repeated=int(after["repeated"] - before["repeated"]),
        asking_s=after["span_s"],
        command_s=command_s,
        peak_mb=peak / 1e6,
    )


def stats(url: str, reset: bool = False) -> dict[str, float]:
    """What the server counted; `reset` starts its clock anew."""
    address = url.removesuffix("/v1") + ("/stats/reset" if reset else "/stats")
    with urllib.request.urlopen(address) as response:  # noqa: S310 - our own server
        content: dict[str, float] = json.load(response)
    return content


def family(pid: int) -> list[int]:
    """A process and all that descend from it (Linux)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(other for child in children for other in family(int(child)))]


def pss_bytes(pid: int) -> int:
    """Proportional set size: what a process has for itself, and its part of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
