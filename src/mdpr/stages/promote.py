"""promote: the gate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mdpr.params import PromoteParams, TrackingParams
from mdpr.stages.stage import Checkpoint, In, Out

if TYPE_CHECKING:
    from mdpr.mlops.gate import Policy

logger = logging.getLogger(__name__)


def promote(
    prepared: In,
    evaluation: In,
    registration: In,
    promotion: Out,
    checkpoint: Checkpoint,
    *,
    params: PromoteParams,
    tracking: TrackingParams,
) -> str:
    """Compare the challenger with the champion, move the alias or keep it, and write promotion.json.

    A champion that was registered with other test images is scored on those of `prepared` first.
    """
    from mdpr.artifacts import Registration, write_json
    from mdpr.mlops import promotions
    from mdpr.mlops.runs import publish_waiting
    from mdpr.mlops.store import connect

    publish_waiting(connect(), tracking)
    outcome = promotions.promote(Registration.read(registration), evaluation, prepared, _policy(params), checkpoint)
    decision = "promoted" if outcome.decision == "promoted" else "not promoted"
    write_json(promotion, outcome)
    return f"{decision}: version {outcome.version or 'none'} of {outcome.model_name}: {outcome.reason}"


def preview(prepared: In, evaluation: In, registration: In, *, params: PromoteParams) -> None:
    """Show what the gate would decide, every number of it, and change nothing."""
    from rich.console import Console

    from mdpr.artifacts import Registration
    from mdpr.mlops import promotions

    judgement = promotions.judge(Registration.read(registration), evaluation, prepared, _policy(params))
    outcome = judgement.promotion()
    console = Console()
    if outcome.checks:  # none if there is nothing to compare: the version is the champion already
        console.print(promotions.checks_table(outcome))
    decision = "would be promoted" if outcome.decision == "promoted" else "would not be promoted"
    console.print(f"version {outcome.version} of {outcome.model_name} {decision}: {outcome.reason}", markup=False)


def _policy(params: PromoteParams) -> Policy:
    """The one that decides and the one that is shown beforehand are the same."""
    from mdpr.mlops.gate import read_policy

    return read_policy(Path(params.policy)).with_margin(params.margin_points)


def rollback(*, tracking: TrackingParams) -> None:
    """Move the alias `champion` back to the version behind `previous`."""
    from mdpr.mlops import promotions

    went, came = promotions.rollback(tracking.model_name)
    logger.info("the champion of %s is version %s again, version %s was rolled back", tracking.model_name, came, went)


OTHERWISE = {"dry_run": preview, "rollback": rollback}
