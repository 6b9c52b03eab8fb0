"""The pieces the pipelines are put together from. Each takes channels and gives channels; none decides anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from components.configure.component import configure
from components.evaluate.component import evaluate
from components.prepare.component import prepare
from components.probe.component import probe
from components.promote.component import promote
from components.register.component import register
from components.validate.component import validate
from kfp import dsl

from mdpr.params import dump_yaml
from pipelines import placement
from pipelines.parameters import Params, defaults
from pipelines.site import Site

Place = Callable[[dsl.PipelineTask], dsl.PipelineTask]


def placer(site: Site) -> Place:
    """What gives a task its image, limits and secrets, as `site` offers them."""
    return partial(placement.place, site=site)


@dataclass(frozen=True)
class Start:
    """Where every pipeline begins: each stage's parameters as text, the prepared images, the frozen model's bias."""

    params: Mapping[str, Any]
    images: Any
    bias: Any


def begin(place: Place, params: Params, chosen: Mapping[str, Any]) -> Start:
    """Check the parameters, cut and check the data, probe the model. `chosen`: the pipeline's parameters by name."""
    base = dump_yaml(params)
    texts = place(configure(base=base, **{**defaults(params), **chosen})).outputs
    images = place(prepare(params=texts["prepare"])).output
    checked = place(validate(params=texts["validate"], prepared=images))
    # A broken data set stops the flow before anything is computed on it.
    bias = place(probe(params=texts["probe"], prepared=images)).after(checked).output
    return Start(texts, images, bias)


def release(place: Place, start: Start, **tuned: Any) -> None:
    """Score the model on the test set, register it, and let the gate decide. `tuned`: knowledge, features, model."""
    scoring = place(evaluate(params=start.params["evaluate"], prepared=start.images, probe=start.bias, **tuned))
    scores = scoring.outputs["evaluation"]
    version = place(register(params=start.params["register"], evaluation=scores, **tuned)).output
    place(promote(params=start.params["promote"], evaluation=scores, registration=version))
