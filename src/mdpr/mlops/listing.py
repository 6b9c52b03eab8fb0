"""The registry and the gate's checks as tables for a terminal, and as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mdpr.artifacts import Promotion
from mdpr.evaluation.score_table import in_percent
from mdpr.mlops.registry import CHAMPION, Registry, Version
from mdpr.mlops.releases import DECISION_TAG, FIGURES_TAG, FRACTIONS_TAG, TEST_SET_TAG

if TYPE_CHECKING:
    from rich.table import Table

FIGURES = ("all", "few", "ece")  # percent
COLUMNS = ("version", "aliases", "registered", "all", "few", "ece", "gate")


def registry_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per version, the newest first; a figure that was not recorded is None. Raises `TrackingError`."""
    aliases = registry.aliases()
    rows = []
    for version in registry.versions():
        figures = _figures(version)
        rows.append(
            {
                "version": version.number,
                "aliases": sorted(alias for alias, number in aliases.items() if number == version.number),
                "registered": datetime.fromtimestamp(version.created_ms / 1000, UTC).isoformat(timespec="seconds"),
                **{key: figures.get(key) for key in FIGURES},
                "gate": version.tags.get(DECISION_TAG),
                "run_id": version.run_id,
            }
        )
    return rows


@dataclass(frozen=True)
class ChampionFigures:
    """What the champion scored: figure -> percent; and the digest of the test images behind it."""

    number: str
    figures: Mapping[str, float]
    test_sha256: str | None


def champion_figures(registry: Registry) -> ChampionFigures | None:
    """Read from the champion's tags; None if there is no champion. Raises `TrackingError`."""
    champion = registry.get_by_alias(CHAMPION)
    if champion is None:
        return None
    return ChampionFigures(champion.number, _figures(champion), champion.tags.get(TEST_SET_TAG))


def _figures(version: Version) -> dict[str, Any]:
    """What a version scored, in percent; an earlier release recorded fractions."""
    fractions = {name: value for name, value in _json_tag(version, FRACTIONS_TAG).items() if isinstance(value, float)}
    return _json_tag(version, FIGURES_TAG) or in_percent(fractions)


def _json_tag(version: Version, tag: str) -> dict[str, Any]:
    """The content of a tag; nothing if the version has none, or a person edited it."""
    try:
        content = json.loads(version.tags.get(tag, "{}"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def registry_table(name: str, rows: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, title=f"{name}: versions in the MLflow registry (all, few, ece in percent)")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("version", *FIGURES) else "left")
    for row in rows:
        style = "bold" if "champion" in row["aliases"] else None
        table.add_row(*(Text(_text(row[column])) for column in COLUMNS), style=style)
    return table


def checks_table(promotion: Promotion) -> Table:
    from rich.table import Table

    champion = promotion.champion_before or "none"
    table = Table(title=f"Gate: version {promotion.version or 'none'} of {promotion.model_name}, champion {champion}")
    for column in ("check", "measured", "judged", "must be", "passed"):
        table.add_column(column, justify="left" if column in ("check", "must be") else "right")
    for check in promotion.checks:
        bound = f"{check.passes} {check.threshold:g}"
        table.add_row(check.name, f"{check.estimate:.2f}", f"{check.value:.2f}", bound, "yes" if check.passed else "no")
    return table


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(value)
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
