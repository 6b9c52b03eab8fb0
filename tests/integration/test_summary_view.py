"""The short table that the UI shows after evaluate, against a real registry over sqlite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mdpr.kubeflow.components import show_summary
from mdpr.mlops import promotions, releases
from mdpr.mlops.gate import read_policy
from mdpr.mlops.releases import Parts
from mdpr.mlops.store import Store
from mdpr.params import RegisterParams, TrackingParams

pytestmark = pytest.mark.integration
TRACKING = TrackingParams(experiment="shoes", model_name="shoes", system_metrics=False)


@dataclass
class Port:
    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


def summary(evaluation: Path) -> list[str]:
    view = Port(str(evaluation.parent / "summary.md"))
    show_summary(Port(str(evaluation)), yaml.safe_dump({"tracking": TRACKING.model_dump()}), view)
    return Path(view.path).read_text("utf-8").splitlines()


def test_the_champion_is_a_line_of_its_own_once_there_is_one(
    store: Store,
    parts: Parts,
    evaluated: Callable[..., Path],
    register_params: RegisterParams,
    project_root: Path,
    tmp_path: Path,
) -> None:
    first = evaluated(tmp_path / "first", 0.8, TRACKING)
    assert summary(first)[-1] == "There is no champion yet."
    registered = releases.register(parts, first, TRACKING, register_params)
    policy = read_policy(project_root / "mlflow" / "promotion.yaml")
    promotions.promote(registered, first, first, policy, first / "checkpoint")

    second = evaluated(tmp_path / "second", 0.85, TRACKING)
    assert summary(second)[2:] == [
        "| percent | all | many | few |",
        "| --- | --- | --- | --- |",
        "| Zero-shot (frozen CLIP) | 60.0 | 60.0 | 60.0 |",
        "| Base (prompt tuner) | 60.0 | 60.0 | 60.0 |",
        "| **Fused (final answer)** | 85.0 | 85.0 | 85.0 |",
        "| Champion, version 1 | 80.0 | 80.0 | 80.0 |",
        "| gain over Zero-shot (frozen CLIP) | +25.0 | +25.0 | +25.0 |",
        "| gain over Champion, version 1 | +5.0 | +5.0 | +5.0 |",
    ]
    run = (second / "run.json").read_text("utf-8")
    (second / "run.json").write_text(run.replace('"test_sha256": "t"', '"test_sha256": "other"'), "utf-8")
    assert summary(second)[-1].startswith("The champion was scored on other test images")


def test_a_registry_that_is_away_costs_its_line_and_nothing_else(
    store: Store, evaluated: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = evaluated(tmp_path / "first", 0.8, TRACKING)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lines = summary(evaluation)
    assert "| **Fused (final answer)** | 80.0 | 80.0 | 80.0 |" in lines
    assert lines[-1].startswith("The champion is not known: ")
