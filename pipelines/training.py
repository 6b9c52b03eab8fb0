"""The training pipeline, whole: from images to a champion.

Defaults are those of params.yaml at the time of compiling: the pipeline does what `dvc repro` does.
"""

from typing import Any

from components.close.component import close
from components.describe.component import describe
from components.encode.component import encode
from components.tune.component import tune
from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from pipelines.flow import begin, placer, release
from pipelines.parameters import CHOICES, Parameter, Params, make_pipeline, offer
from pipelines.site import Site

NAME = "mdpr-training"
SUMMARY = "Tune CLIP on long-tailed data with multi-dimensional dynamic prompt routing, from images to a champion."


def training_parameters(params: Params) -> dict[str, Parameter]:
    """What the UI offers: every choice."""
    return offer(params, list(CHOICES))


def training_pipeline(params: Params, site: Site) -> GraphComponent:
    """The pipeline whose parameters have the values of `params` as defaults, placed as `site` offers."""
    place = placer(site)

    def graph(chosen: dict[str, Any]) -> None:
        with dsl.ExitHandler(place(close()), name=NAME):  # whatever happens inside
            start = begin(place, params, chosen)
            sentences = place(describe(params=start.params["describe"], prepared=start.images, probe=start.bias)).output
            features = place(encode(params=start.params["encode"], knowledge=sentences)).output
            model = place(
                tune(params=start.params["tune"], prepared=start.images, probe=start.bias, features=features)
            ).output
            release(place, start, knowledge=sentences, features=features, model=model)

    return make_pipeline(NAME, SUMMARY, training_parameters(params), graph)
