"""The pipelines by name: what `--variant` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kfp.dsl.graph_component import GraphComponent

from mdpr.kubeflow.side_by_side import params_per_setting, params_per_shard
from pipelines import knowledge, sweep, training
from pipelines.parameters import Parameter, Params
from pipelines.site import Site


@dataclass(frozen=True)
class Variant:
    """A pipeline.

    pipeline_name    on a cluster
    parameters       what its UI offers, from params.yaml
    make             from params.yaml and a site
    results          what of a run's folder is worth a look at its end
    check            raises `ConfigError` where a parameter of the pipeline's own does not go with a stage's; takes the
                     stages' parameters as text, and the pipeline's parameters
    """

    pipeline_name: str
    parameters: Callable[[Params], Mapping[str, Parameter]]
    make: Callable[[Params, Site], GraphComponent]
    results: Mapping[str, str]
    check: Callable[[Mapping[str, str], Mapping[str, Any]], object] = lambda texts, values: None


RELEASED = {"report": "evaluate/evaluation/report.html", "promotion": "promote/promotion"}

VARIANTS: dict[str, Variant] = {
    "training": Variant(training.NAME, training.training_parameters, training.training_pipeline, RELEASED),
    "knowledge": Variant(
        knowledge.NAME,
        knowledge.knowledge_parameters,
        knowledge.knowledge_pipeline,
        {"knowledge": "merge/knowledge/knowledge.json"},
        lambda texts, values: params_per_shard(texts["describe"], values["shards"]),
    ),
    "sweep": Variant(
        sweep.NAME,
        sweep.sweep_parameters,
        sweep.sweep_pipeline,
        {"choice": "select/choice", **RELEASED},
        lambda texts, values: params_per_setting(texts["tune"], values["settings"]),
    ),
}
