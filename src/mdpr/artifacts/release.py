"""registration.json and promotion.json: a version in the registry, and what the gate decided about it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mdpr.artifacts.formats import Format, parse, read_json


class Registration(Format):
    """One version in the MLflow model registry; `model_digest` is of what it computes with, not of its run.

    digests: of what the model comes from (`model_digests`).
    """

    format: Literal["mdpr-registration/1"] = "mdpr-registration/1"
    model_name: str
    version: str
    run_id: str
    model_digest: str
    alias: str
    source: str
    digests: dict[str, str] = Field(default_factory=dict)


def read_registration(path: Path) -> Registration:
    return parse(path, Registration, read_json(path))


class Check(Format):
    """One test of the gate: passed where `value` is above, at least or at most `threshold`, as `passes` says.

    Where `value` is a confidence bound, `estimate` is the measured figure that it bounds; otherwise the two are equal.
    """

    name: str
    value: float
    estimate: float
    passes: Literal["above", "at least", "at most"]
    threshold: float
    passed: bool


class Promotion(Format):
    """What the gate decided; the versions behind the alias `champion` before and after (None: no champion)."""

    format: Literal["mdpr-promotion/1"] = "mdpr-promotion/1"
    decision: Literal["promoted", "kept"]
    reason: str
    model_name: str
    version: str
    champion_before: str | None
    champion_after: str | None
    checks: tuple[Check, ...]


def read_promotion(path: Path) -> Promotion:
    return parse(path, Promotion, read_json(path))
