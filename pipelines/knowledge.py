"""The knowledge pipeline: the sentences alone, written in several shares of the classes at once and put together."""

from typing import Any

from components.close.component import close
from components.describe.component import describe
from components.merge.component import merge
from components.shard.component import shard
from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from pipelines.flow import begin, placer
from pipelines.parameters import Parameter, Params, make_pipeline, offer
from pipelines.site import Site

NAME = "mdpr-knowledge"
SUMMARY = "Gather and audit the sentences about every class, in shards of the classes that run side by side."
DATA = ("source", "root", "data_repo", "data_rev", "data_path")
OFFERED = (*DATA, "architecture", "weights", "provider", "llm_vendor", "llm_model", "llm_base_url")
OWN = {"shards": Parameter(4, "Shares of the classes, each a task of its own; at most one a class.")}


def knowledge_parameters(params: Params) -> dict[str, Parameter]:
    """What the UI offers: the choices that matter up to the sentences, and the number of shards."""
    return offer(params, OFFERED, OWN)


def knowledge_pipeline(params: Params, site: Site) -> GraphComponent:
    """The pipeline whose parameters have the values of `params` as defaults, placed as `site` offers."""
    place = placer(site)

    def graph(chosen: dict[str, Any]) -> None:
        shards = chosen.pop("shards")
        with dsl.ExitHandler(place(close()), name=NAME):  # whatever happens inside
            start = begin(place, params, chosen)
            asked = start.params["describe"]
            sources = {"prepared": start.images, "probe": start.bias}
            with dsl.ParallelFor(place(shard(params=asked, shards=shards)).output, name="shards") as share:
                described = place(describe(params=share, **sources))
            place(merge(params=asked, shards=dsl.Collected(described.outputs["knowledge"]), **sources))

    return make_pipeline(NAME, SUMMARY, knowledge_parameters(params), graph)
