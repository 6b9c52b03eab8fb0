"""A YAML file per benchmark: the paper, the commands, published figures to compare with, the settings.

A recipe names the settings that differ from the documented defaults; a variant names those in which it differs
from the recipe (another imbalance ratio). Every recipe has the variant `published`: all settings in which the published
code differs, with `as_published` for those that depend on the data set (augmentation). `params_text` is the whole
params.yaml of a recipe and a variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from pydantic import Field, ValidationError

from mdpr.errors import ConfigError
from mdpr.params import Section, apply_overrides, dump_yaml, fault_line, parse_params, parse_yaml
from mdpr.params.describing import PREPARED
from mdpr.params.section import suggest
from mdpr.params.tuning import PUBLISHED

EXTENSION = ".yaml"
PUBLISHED_VARIANT = (
    "tune.preset=published",
    *(f"tune.{key}={value}" for key, value in PUBLISHED.items()),
    "encode.normalize=false",
)


class Paper(Section):
    title: str
    venue: str
    url: str


class PublishedFigure(Section):
    """Overall accuracy on the test set in percent, as someone reported it."""

    method: str
    setting: str
    overall: float = Field(gt=0, le=100)
    source: str


class Recipe(Section):
    """`settings` is section -> key -> value; `variants` is name -> overrides like tune.epochs=5;
    `as_published` are overrides of the variant `published`."""

    name: str
    title: str
    paper: Paper
    commands: tuple[str, ...] = Field(min_length=1)
    published: tuple[PublishedFigure, ...]
    expected_time: str
    notes: str
    settings: dict[str, dict[str, Any]]
    variants: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    as_published: tuple[str, ...] = ()

    @property
    def all_variants(self) -> dict[str, tuple[str, ...]]:
        return self.variants | {"published": (*PUBLISHED_VARIANT, *self.as_published)}


def recipe_names() -> list[str]:
    """The names of the shipped recipes, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(EXTENSION) for file in files if file.name.endswith(EXTENSION))


def recipe_text(name: str) -> str:
    """The file of a recipe as it is; `ConfigError` if there is none of that name."""
    names = recipe_names()
    if name not in names:
        raise ConfigError(f"there is no recipe {name}{suggest(name, names)}")
    return (resources.files(__name__) / f"{name}{EXTENSION}").read_text(encoding="utf-8")


def read_recipe(name: str) -> Recipe:
    """A recipe by its name; raises `ConfigError` if there is none."""
    try:
        return Recipe.model_validate(parse_yaml(recipe_text(name), f"recipe {name}"))
    except ValidationError as error:
        raise ConfigError(f"recipe {name}: {fault_line(error, Recipe)}") from None


def params_text(recipe: Recipe, variant: str | None, overrides: Sequence[str] = ()) -> str:
    """A complete params.yaml: every section and key, checked. `overrides` have the last word.

    Raises `ConfigError` for a variant that the recipe does not have, and for a wrong key or value.
    """
    if variant is not None and variant not in recipe.all_variants:
        known = ", ".join(recipe.all_variants)
        raise ConfigError(f"recipe {recipe.name} has no variant {variant}; there are {known}")
    chosen = [*(recipe.all_variants[variant] if variant is not None else ()), *overrides]
    sections = parse_params(apply_overrides(recipe.settings, chosen))
    if not sections.describe.reads_file:
        sections = parse_params(apply_overrides(recipe.settings, [f"describe.path={PREPARED}", *chosen]))
    name = recipe.name if variant is None else f"{recipe.name}, variant {variant}"
    head = f"# Recipe {name}: {recipe.title}. `mdpr recipe show {recipe.name}` shows what to compare with.\n"
    bodies = (dump_yaml({section: values}) for section, values in sections.dump().items())
    return head + "\n".join(bodies)
