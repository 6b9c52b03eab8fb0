"""From YAML and overrides to frozen sections; every error names the key, the value and what was allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mdpr.errors import ConfigError
from mdpr.params.section import Section
from mdpr.params.sections import SECTIONS


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping; `ConfigError` names the file and the line otherwise."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: run from the project folder, or name another file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections (`tune:` and so on), not a {type(content).__name__}")
    return content


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with `section.key=value` strings laid over it; values are read as YAML."""
    merged: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(raw)))
    for override in overrides:
        key, separator, text = override.partition("=")
        *parents, leaf = key.strip().split(".")
        if not separator or not parents:
            raise ConfigError(f"override {override!r} must read section.key=value, for example tune.epochs=5")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        try:
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: {text!r} is not valid YAML") from None
    return merged


def parse_params(raw: Mapping[str, Any]) -> dict[str, Section]:
    """Every section of `raw` as its frozen model; sections that are not named take their documented defaults."""
    for name in raw:
        if name not in SECTIONS:
            raise ConfigError(f"{name} is not a section of params.yaml{_suggest(str(name), SECTIONS)}")
    return {name: _parse_section(name, model, raw.get(name)) for name, model in SECTIONS.items()}


def load_params(path: Path, overrides: Sequence[str] = ()) -> dict[str, Section]:
    """params.yaml and its overrides as frozen models, one a section; raises `ConfigError`."""
    return parse_params(apply_overrides(read_yaml(path), overrides))


def _parse_section(name: str, model: type[Section], values: Any) -> Section:
    try:
        return model.model_validate({} if values is None else values)
    except ValidationError as error:
        raise ConfigError(_explain(name, model, error)) from None


def _explain(section: str, model: type[Section], error: ValidationError) -> str:
    """The first fault of `error` in one line: key, value, what was allowed."""
    fault = error.errors(include_url=False)[0]
    path = [str(part) for part in fault["loc"]]
    key = ".".join([section, *path])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1])
        return f"{key} is not a setting{_suggest(path[-1], fields)}{more}"
    if fault["type"] == "literal_error":
        allowed = fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{key} = {fault['input']!r}: must be one of {allowed}{more}"
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}{more}"
    message = fault["msg"].replace("Input should be", "must be").replace("Input must be", "must be")
    return f"{key} = {fault['input']!r}: {message[0].lower()}{message[1:]}{more}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)


def _suggest(wrong: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
