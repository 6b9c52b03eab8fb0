"""Time and peak memory of one call, on a GPU or on the CPU."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

RESET_PEAK = "5"  # proc(5): clears the peak resident size of a process
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Median seconds of a call, and the memory it held at its peak beyond what was there before, in MiB."""

    seconds: float
    peak_mib: float


Clock = Callable[[], float]


def compare(
    calls: Mapping[str, Callable[[], object]], device: str, repeats: int, clock: Clock = time.perf_counter
) -> dict[str, Cost]:
    """Every call once to warm up and once for its memory, then `repeats` rounds, all calls in turn in each round.

    `time.process_time` as the clock is fair on a machine that does other things too, with one thread on the CPU.
    """
    peaks = {}
    for name, call in calls.items():
        call()
        peaks[name] = peak_mib(call, device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(timed(call, device, clock))
    return {name: Cost(statistics.median(seconds[name]), peaks[name]) for name in calls}


def timed(call: Callable[[], object], device: str, clock: Clock = time.perf_counter) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def peak_mib(call: Callable[[], object], device: str) -> float:
    """Peak memory beyond the present: torch's allocator on a GPU, resident size (Linux, glibc) on the CPU."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    # What earlier calls freed goes back first: memory that the allocator kept would hide this call's need.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before_kib = _status_kib("VmRSS")
    call()
    return (_status_kib("VmHWM") - before_kib) / 1024


def _status_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise AssertionError(f"/proc/self/status has no {key}")
