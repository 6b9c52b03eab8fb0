"""The parameters a person sets in the UI one by one: where each belongs in params.yaml, and what it says there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter as Argument
from inspect import Signature
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from mdpr.params import choices

Params = Mapping[str, Mapping[str, Any]]  # section of params.yaml -> key -> value

CHOICES = choices()
RECIPE = "Known benchmark (mdpr recipe list) to start from; then, below, only what you change counts."
OVERRIDES = "Everything else, as YAML text, for example {tune: {context_tokens: 16, prompt_depth: 9}}."


@dataclass(frozen=True)
class Parameter:
    """A parameter of a pipeline: its default, whose type is the parameter's, and what the UI says about it."""

    default: str | int | float | bool | list[str]
    help: str


def defaults(params: Params) -> dict[str, Any]:
    """Every choice as `params` has it."""
    return {name: _value(params, choice.key) for name, choice in CHOICES.items()}


def _value(params: Params, key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def offer(params: Params, names: Sequence[str], own: Mapping[str, Parameter] | None = None) -> dict[str, Parameter]:
    """A pipeline's parameters in the order of the UI: recipe, the choices `names`, its `own`, overrides."""
    chosen = defaults(params)
    choices = {name: Parameter(chosen[name], CHOICES[name].text) for name in names}
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
