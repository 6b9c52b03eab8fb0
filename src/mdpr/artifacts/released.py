"""run.json, registration.json, promotion.json: a result's MLflow run, its version, and the gate's decision."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mdpr.artifacts.formats import Format, parse, read_json


def _run_id(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", text):
        raise ValueError("not the id of an MLflow run")
    return text


RunId = Annotated[str, AfterValidator(_run_id)]


class TrackedRun(Format):
    """The MLflow run that a folder of results belongs to; `digests` of what its model comes from (`model_digests`)."""

    format: Literal["mdpr-run/1"] = "mdpr-run/1"
    run_id: RunId
    experiment: str
    test_sha256: str | None = None  # of the test split behind the results; model/run.json has none
    digests: dict[str, str] = Field(default_factory=dict)


def read_run(folder: Path) -> TrackedRun:
    path = folder / "run.json"
    return parse(path, TrackedRun, read_json(path))


class Registration(Format):
    """One version in the MLflow model registry; `model_digest` is of what it computes with, not of its run.

    version: None for the model of a DVC experiment that did not register it.
    digests: of what the model comes from (`model_digests`).
    """

    format: Literal["mdpr-registration/1"] = "mdpr-registration/1"
    model_name: str
    version: str | None
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
    """The gate's decision about a version (None: the model was not registered).

    `champion_before` and `champion_after` are the versions with the alias `champion`; None: there was no champion.
    """

    format: Literal["mdpr-promotion/1"] = "mdpr-promotion/1"
    decision: Literal["promoted", "kept"]
    reason: str
    model_name: str
    version: str | None
    champion_before: str | None
    champion_after: str | None
    checks: tuple[Check, ...]


def read_promotion(path: Path) -> Promotion:
    return parse(path, Promotion, read_json(path))
