"""params.yaml with the overrides of the command line, as one frozen tree: `Params`.

Errors name the key, the value and what is allowed:

    tune.base_loss = 'cee': must be one of ce, logit_adjusted, balanced_softmax, ldam, focal, class_balanced
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from mdpr.errors import ConfigError
from mdpr.params.describing import DescribeParams, EncodeParams, ProbeParams
from mdpr.params.documents import parse_yaml, read_yaml
from mdpr.params.preparing import PrepareParams, ValidateParams
from mdpr.params.releasing import EvaluateParams, PromoteParams, RegisterParams, TrackingParams
from mdpr.params.section import Section, fault_line, kinds_of, shorten, suggest
from mdpr.params.tuning import BackboneParams, TuneParams


# A dataclass, because a BaseModel has a method `validate` and a metaclass with `register`.
@dataclass(frozen=True, config=ConfigDict(extra="forbid", defer_build=True))
class Params:
    """params.yaml: a section per stage, and those that stages share. A section that is not named has its defaults."""

    backbone: BackboneParams = Field(default_factory=BackboneParams)
    tracking: TrackingParams = Field(default_factory=TrackingParams)
    prepare: PrepareParams = Field(default_factory=PrepareParams)
    validate: ValidateParams = Field(default_factory=ValidateParams)
    probe: ProbeParams = Field(default_factory=ProbeParams)
    describe: DescribeParams = Field(default_factory=DescribeParams)
    encode: EncodeParams = Field(default_factory=EncodeParams)
    tune: TuneParams = Field(default_factory=TuneParams)
    evaluate: EvaluateParams = Field(default_factory=EvaluateParams)
    register: RegisterParams = Field(default_factory=RegisterParams)
    promote: PromoteParams = Field(default_factory=PromoteParams)

    def section(self, name: str) -> Section:
        """The section called `name`, one of `SECTIONS`."""
        found: Section = getattr(self, name)
        return found

    def dump(self, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """All sections, or those of `names`, as plain data: what `parse_params` takes."""
        return {name: self.section(name).model_dump(mode="json") for name in (SECTIONS if names is None else names)}


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Params.__pydantic_fields__.items()  # type: ignore[attr-defined]
}


def parse_params(raw: Mapping[str, Any]) -> Params:
    """The sections of `raw` (section -> key -> value) as `Params`; raises `ConfigError`."""
    for name in raw:
        if name not in SECTIONS:
            raise ConfigError(f"{name} is not a section of params.yaml{suggest(str(name), list(SECTIONS))}")
    try:
        return Params(**{name: {} if values is None else values for name, values in raw.items()})
    except ValidationError as error:
        raise ConfigError(fault_line(error, Params)) from None


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """params.yaml at `path` with `overrides` (section.key=value); raises `ConfigError`."""
    return parse_params(apply_overrides(read_yaml(path), overrides))


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with `overrides` (section.key=value): text as it stands, everything else as YAML."""
    merged: dict[str, Any] = copy.deepcopy(dict(raw))
    for override in overrides:
        key, separator, text = override.partition("=")
        *parents, leaf = key.strip().split(".")
        if not separator or not parents:
            raise ConfigError(f"override {shorten(override)} must read section.key=value, for example tune.epochs=5")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {shorten(override)}: {parent} is a value, not a section")
        node[leaf] = read_value(key.strip(), text, f"override {shorten(override)}")
    return merged


def read_value(key: str, text: str, name: str) -> Any:
    """The value that a command line gives for the setting `key`: words as they stand, everything else as YAML.

    Quotes around words are YAML's own. Raises `ConfigError` that starts with `name`.
    """
    field = _field(key.split("."))
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if field is not None and set(kinds_of(field)) == {str} and not quoted:
        return text
    return parse_yaml(text, name)


def _field(path: Sequence[str]) -> FieldInfo | None:
    """The setting at `path`, None if there is none."""
    model: Any = SECTIONS.get(path[0])
    found: FieldInfo | None = None
    for part in path[1:]:
        found = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = found.annotation if found else None
    return found


@plain_dataclass(frozen=True)
class Choice:
    """A setting that the Kubeflow UI offers: its key in params.yaml, its type, and its text in the UI."""

    key: str
    kind: type
    text: str


def choices() -> dict[str, Choice]:
    """The settings that the Kubeflow UI offers, by their names there: those that are marked with `offered`.

    Settings that stages share come after the stages' own.
    """
    order = sorted(SECTIONS, key=lambda name: name in ("backbone", "tracking"))
    return dict(choice for name in order for choice in _choices(name, SECTIONS[name]))


def _choices(inside: str, model: type[BaseModel]) -> Iterator[tuple[str, Choice]]:
    for name, field in model.model_fields.items():
        key = f"{inside}.{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _choices(key, field.annotation)
        elif isinstance(field.json_schema_extra, dict) and isinstance(
            mark := field.json_schema_extra.get("offered"), dict
        ):
            text = str(mark["text"] or field.description)
            yield (
                str(mark["name"] or name),
                Choice(key, kinds_of(field)[0], f"{text[0].upper()}{text[1:].rstrip('.')}."),
            )
