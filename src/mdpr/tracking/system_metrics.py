"""How busy the machine is: MLflow's own monitors, read in the background, averaged an epoch.

MLflow's monitoring thread would send its values itself and lose them while the store is away; here they take the
same way as every other value.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from typing import Any

logger = logging.getLogger(__name__)
SAMPLE_EVERY_S = 5.0
PREFIX = "system/"


class SystemMonitor:
    """Samples CPU, memory, disk, network and GPUs until it is stopped."""

    def __init__(self) -> None:
        self._monitors = _monitors()
        self._lock, self._stopped = Lock(), Event()
        self._thread = Thread(target=self._run, name="system-metrics", daemon=True)

    def drain(self) -> dict[str, float]:
        """Mean of each figure since the last call, one sample at least: `system/cpu_utilization_percentage` ..."""
        values: dict[str, float] = {}
        with self._lock:
            self._sample()
            for monitor in self._monitors:
                values |= {PREFIX + name: float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
        return values

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        for monitor in self._monitors:
            monitor.collect_metrics()


@contextmanager
def monitored(enabled: bool) -> Iterator[SystemMonitor | None]:
    """A running monitor, or None where it is switched off."""
    if not enabled:
        yield None
        return
    monitor = SystemMonitor()
    monitor._thread.start()
    try:
        yield monitor
    finally:
        monitor._stopped.set()
        monitor._thread.join(timeout=SAMPLE_EVERY_S)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:  # no driver, no GPU
        logger.debug("no GPU figures: %s", error)
    return monitors
