"""Many processes that promote their own version at the same moment, through one MLflow server."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

from benchmarks.servers import START_TIMEOUT_S, running
from mdpr.errors import TrackingError
from mdpr.mlops.promotions import move_champion
from mdpr.mlops.registry import Registry
from mdpr.mlops.store import connect


def count_winners(folder: Path, promoters: int) -> int:
    """Of so many processes that promote at once, how many learn that they won; the alias must agree with them."""
    command = ["-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'crowd.db'}"]
    command += ["--artifacts-destination", str(folder / "crowd")]
    with running(command, "/health", folder) as (address, _):
        os.environ["MLFLOW_TRACKING_URI"] = address
        registry = Registry(connect(), "crowd")
        client = registry.store.client
        experiment_id = client.create_experiment("crowd")
        run_id = client.create_run(experiment_id).info.run_id
        models = [client.create_logged_model(experiment_id, "model", run_id) for _ in range(promoters)]
        numbers = [registry.create(model.model_id, f"{n}", {}).number for n, model in enumerate(models)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.serving", "mlflow"])  # one import of everything for all of them
        start, answers = context.Barrier(promoters), context.Queue()
        environment = {"MLFLOW_TRACKING_URI": address}
        processes = [
            context.Process(target=promote_when_told, args=(environment, "crowd", number, start, answers))
            for number in numbers
        ]
        for process in processes:
            process.start()
        results = [answers.get(timeout=START_TIMEOUT_S) for _ in processes]
        for process in processes:
            process.join()
        champion = registry.get_by_alias("champion")
    winners = [number for number, reason in results if reason is None]
    assert champion is not None
    assert champion.number in winners
    assert all("someone else promoted" in reason for _, reason in results if reason is not None)
    return len(winners)


def promote_when_told(environment: dict[str, str], name: str, number: str, start: Any, answers: Any) -> None:
    """One of many promoting processes: puts its version into `answers`, and why it lost (None: it won)."""
    os.environ.update(environment)
    registry = Registry(connect(), name)
    registry.get_by_alias("champion")
    start.wait()
    try:
        move_champion(registry, number, expected=None)
    except TrackingError as error:
        answers.put((number, str(error)))
    else:
        answers.put((number, None))
