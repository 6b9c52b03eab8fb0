"""promote: the gate."""

from __future__ import annotations

import logging
from pathlib import Path

from mdpr.config import PromoteParams, TrackingParams
from mdpr.stages.definition import In, Out

logger = logging.getLogger(__name__)


def promote(
    evaluation: In, registration: In, promotion: Out, *, params: PromoteParams, tracking: TrackingParams
) -> None:
    """Compare the challenger with the champion, move the alias or keep it, and write promotion.json."""
    from mdpr.artifacts import read_registration, write_json
    from mdpr.registry import releases
    from mdpr.registry.gate import read_policy

    outcome = releases.promote(read_registration(registration), evaluation, read_policy(Path(params.policy)))
    verdict = "promoted" if outcome.decision == "promoted" else "not promoted"
    logger.info("version %s of %s %s: %s", outcome.version, outcome.model_name, verdict, outcome.reason)
    write_json(promotion, outcome)
