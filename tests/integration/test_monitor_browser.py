"""The page of `mdpr monitor` in a real browser: silent, searchable, without faults of accessibility."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mdpr.artifacts import Check
from mdpr.monitoring.result import Accuracy, Drift, Monitoring, Share, render_monitoring

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.integration


@pytest.fixture
def monitoring() -> Monitoring:
    def share(value: float) -> Share:
        return Share(reference=0.5, counted=0.6, estimated=value, interval=(value - 0.05, value + 0.05))

    return Monitoring(
        model="shoes",
        version="3",
        model_digest="d",
        images=1200,
        images_used=1000,
        first="2026-01-01T00:00:00+00:00",
        last="2026-01-02T00:00:00+00:00",
        priors=("", "uniform"),
        unreadable=("a.parquet is damaged",),
        other_images=3,
        dropped=4,
        shares={"boot": 0.7, "bag": 0.3},
        model_prior={"boot": 0.5, "bag": 0.5},
        classes={"boot": share(0.7), "bag": share(0.3)},
        groups={"many": share(0.7), "few": share(0.3)},
        label_shift=0.2,
        label_shift_interval=(0.15, 0.25),
        accuracy=Accuracy(
            reference=0.8,
            expected=0.75,
            expected_interval=(0.73, 0.77),
            with_prior=0.78,
            gain_of_prior=0.03,
            gain_interval=(0.01, 0.05),
        ),
        drift=Drift(features="embeddings", auc=0.7, interval=(0.66, 0.74), images=1000),
        checks=(Check(name="drift, AUC", value=0.66, estimate=0.7, passes="at most", threshold=0.65, passed=False),),
        advice="retrain",
        reason="drift",
    )


def test_the_page_is_silent_searchable_and_accessible(
    page: Page, axe_faults: Callable[[], list[tuple[str, str]]], monitoring: Monitoring, tmp_path: Path
) -> None:
    (tmp_path / "monitor.html").write_text(render_monitoring(monitoring), encoding="utf-8")
    page.goto((tmp_path / "monitor.html").as_uri())
    assert axe_faults() == []
    page.fill("#search", "bag")
    assert page.locator("#classes tbody tr:visible").count() == 1
    assert page.locator("#found").inner_text() == "1 of 2 classes"
    text = page.inner_text("main")
    assert all(words in text for words in ("a.parquet is damaged", "uniform", "1,000"))
