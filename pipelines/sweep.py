"""The sweep: the same data and sentences tuned under several settings at once; the best on validation goes on."""

from typing import Any

from components.close.component import close
from components.describe.component import describe
from components.encode.component import encode
from components.select.component import select
from components.tune.component import tune
from components.vary.component import vary
from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from pipelines.flow import begin, placer, release
from pipelines.parameters import CHOICES, Parameter, Params, make_pipeline, offer
from pipelines.site import Site

NAME = "mdpr-sweep"
SUMMARY = "Tune under several settings at once, choose by validation, score and register the best alone."
OWN = {
    "settings": Parameter(
        ["tune: {seed: 0}", "tune: {seed: 1}", "tune: {seed: 2}"],
        "What is tuned, one entry a model: YAML text with keys of tune, over everything else.",
    )
}


def sweep_parameters(params: Params) -> dict[str, Parameter]:
    """What the UI offers: every choice, and the settings of the sweep."""
    return offer(params, list(CHOICES), OWN)


def sweep_pipeline(params: Params, site: Site) -> GraphComponent:
    """The pipeline whose parameters have the values of `params` as defaults, placed as `site` offers."""
    place = placer(site)

    def graph(chosen: dict[str, Any]) -> None:
        settings = chosen.pop("settings")
        with dsl.ExitHandler(place(close()), name=NAME):  # whatever happens inside
            start = begin(place, params, chosen)
            sources = {"prepared": start.images, "probe": start.bias}
            sentences = place(describe(params=start.params["describe"], **sources)).output
            features = place(encode(params=start.params["encode"], knowledge=sentences)).output
            varied = place(vary(params=start.params["tune"], settings=settings)).output
            with dsl.ParallelFor(varied, name="settings") as setting:
                tuned = place(tune(params=setting, features=features, **sources))
            best = place(select(models=dsl.Collected(tuned.outputs["model"]))).outputs["model"]
            release(place, start, knowledge=sentences, features=features, model=best)

    return make_pipeline(NAME, SUMMARY, sweep_parameters(params), graph)
