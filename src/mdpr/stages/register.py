"""register: a version in the model registry."""

from __future__ import annotations

import logging

from mdpr.launch import experiment_name
from mdpr.params import RegisterParams, TrackingParams
from mdpr.stages.stage import In, Out

logger = logging.getLogger(__name__)


def register(
    knowledge: In,
    features: In,
    model: In,
    evaluation: In,
    registration: Out,
    *,
    params: RegisterParams,
    tracking: TrackingParams,
) -> str:
    """Log the servable model to its run, register it, set the alias, and write registration.json.

    A DVC experiment leaves the registry as it is, unless `params.in_experiments` is set.
    """
    from mdpr.artifacts import write_json
    from mdpr.mlops import releases

    parts, experiment = releases.Parts(knowledge, features, model), experiment_name()
    if experiment is None or params.in_experiments:
        made = releases.register(parts, evaluation, tracking, params)
        write_json(registration, made)
        return f"registered: version {made.version} of {made.model_name}, alias {made.alias}"
    later = f"dvc exp apply {experiment} && dvc repro --force --single-item register promote"
    logger.info("experiment %s leaves the registry as it is; to register its model: %s", experiment, later)
    write_json(registration, releases.unregistered(parts, evaluation, tracking, params))
    return f"not registered: experiment {experiment}"
