"""register: a version in the model registry."""

from __future__ import annotations

from mdpr.params import RegisterParams, TrackingParams
from mdpr.stages.stage import In, Out


def register(
    knowledge: In,
    features: In,
    model: In,
    evaluation: In,
    registration: Out,
    *,
    params: RegisterParams,
    tracking: TrackingParams,
) -> None:
    """Log the servable model to its run, register it, set the alias, and write registration.json."""
    from mdpr.artifacts import write_json
    from mdpr.mlops import releases
    from mdpr.mlops.served_model import Parts

    write_json(registration, releases.register(Parts(knowledge, features, model), evaluation, tracking, params))
