"""The parameters a person sets in the UI one by one: where each belongs in params.yaml, and what it says there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter as Argument
from inspect import Signature
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

Params = Mapping[str, Mapping[str, Any]]  # section of params.yaml -> key -> value

# Name in the UI -> its key in params.yaml, and its description; `configure` takes exactly these.
CHOICES: dict[str, tuple[str, str]] = {
    "source": (
        "prepare.source",
        "Kind of data source: embedded, parquet, folder, csv, or a benchmark such as cifar100 or imagenet_lt.",
    ),
    "root": ("prepare.root", "Folder of the source, as the containers see it; not used where data_repo is set."),
    "data_repo": (
        "prepare.repo",
        "Git repository whose DVC tracks the source, without a login: that is in the Kubernetes secret mdpr-data.",
    ),
    "data_rev": ("prepare.rev", "Its commit, tag or branch; empty is the default branch as it is then."),
    "data_path": ("prepare.path", "The folder in it that DVC tracks."),
    "architecture": (
        "backbone.architecture",
        "Frozen CLIP model: an open_clip name, or the path of a model configuration.",
    ),
    "weights": ("backbone.weights", "Its weights: an open_clip pretrained tag, or the path of a file."),
    "prompting": ("tune.prompting", "Prompt tuner: none, coop, vpt, ivlp or maple."),
    "routing": ("tune.routing", "The MDPR branch; false gives the plain prompt tuner."),
    "base_loss": (
        "tune.base_loss",
        "Of the base branch: ce, logit_adjusted, balanced_softmax, ldam, focal or class_balanced.",
    ),
    "epochs": ("tune.epochs", "Passes over the training set."),
    "batch_size": ("tune.batch_size", "Images a step."),
    "learning_rate": ("tune.learning_rate", "AdamW, start of the cosine."),
    "seed": (
        "tune.seed",
        "Seed of initial weights, order of images, augmentation and dropout; the cut has prepare.seed.",
    ),
    "provider": ("describe.provider", "Who writes the sentences: curated, completed, llm or local."),
    "llm_vendor": (
        "describe.llm.vendor",
        "Protocol of the chat model's server: openai, anthropic or google_genai.",
    ),
    "llm_model": ("describe.llm.model", "The chat model; its key is in the Kubernetes secret mdpr-llm."),
    "llm_base_url": ("describe.llm.base_url", "Address of its server; empty is the vendor's own."),
    "margin_points": (
        "promote.margin_points",
        "Percentage points, over all classes, by which a model must beat the champion beyond the policy's own margin.",
    ),
    "experiment": ("tracking.experiment", "MLflow experiment."),
    "model_name": ("tracking.model_name", "Name in the MLflow model registry."),
}
RECIPE = "Known benchmark (mdpr recipe list) to start from; then, below, only what you change counts."
OVERRIDES = "Everything else, as YAML text, for example {tune: {context_tokens: 16, prompt_depth: 9}}."


@dataclass(frozen=True)
class Parameter:
    """A parameter of a pipeline: its default, whose type is the parameter's, and what the UI says about it."""

    default: str | int | float | bool | list[str]
    help: str


def defaults(params: Params) -> dict[str, Any]:
    """Every choice as `params` has it."""
    return {name: _value(params, key) for name, (key, _) in CHOICES.items()}


def as_sections(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `chosen` that are choices, as sections and keys of params.yaml."""
    sections: dict[str, Any] = {}
    for name in chosen.keys() & CHOICES.keys():
        *parents, leaf = CHOICES[name][0].split(".")
        node = sections
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = chosen[name]
    return sections


def _value(params: Params, key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def offer(params: Params, names: Sequence[str], own: Mapping[str, Parameter] | None = None) -> dict[str, Parameter]:
    """A pipeline's parameters in the order of the UI: recipe, the choices `names`, its `own`, overrides."""
    chosen = defaults(params)
    choices = {name: Parameter(chosen[name], CHOICES[name][1]) for name in names}
    return {"recipe": Parameter("", RECIPE), **choices, **(own or {}), "overrides": Parameter("", OVERRIDES)}


def make_pipeline(
    name: str, summary: str, parameters: Mapping[str, Parameter], graph: Callable[[dict[str, Any]], None]
) -> GraphComponent:
    """The pipeline of `graph`, a function of the parameters' channels by name.

    kfp reads a pipeline's interface from a function's signature and docstring; here they are made from `parameters`, so
    that several pipelines share the definition of what they have in common.
    """

    def pipeline(*channels: Any) -> None:
        graph(dict(zip(parameters, channels, strict=True)))

    arguments = [
        Argument(key, Argument.POSITIONAL_OR_KEYWORD, default=item.default, annotation=type(item.default))
        for key, item in parameters.items()
    ]
    lines = (f"    {key}: {item.help}" for key, item in parameters.items())
    pipeline.__doc__ = "\n".join([summary, "", "Args:", *lines])
    pipeline.__signature__ = Signature(arguments, return_annotation=None)  # type: ignore[attr-defined]
    made: GraphComponent = dsl.pipeline(name=name)(pipeline)
    return made
