"""YAML and JSON files that people write, read strictly: a value is read as it is written or refused.

YAML is read by the core schema of version 1.2, as DVC does: `on` and `2024-01-31` are text, `1e-3` is a number. What
other readers understand differently (`010`, `1:30`), a key that is given twice, and a file that is nested too deeply or
is not a regular file are errors, each in one line that names the file, the line and the fix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mdpr.errors import ConfigError, MdprError, one_line

MAX_BYTES = 256 * 2**20
MERGE = "tag:yaml.org,2002:merge"
AMBIGUOUS = "!ambiguous"
RESOLVERS: tuple[tuple[str, str, str], ...] = (  # tag, pattern, first characters
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN"),
    (MERGE, r"<<", "<"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?[0-9]+[eE][-+]?[0-9]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    (AMBIGUOUS, r"[-+]?0[0-9_]+", "-+0"),  # octal in YAML 1.1
    (AMBIGUOUS, r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", "-+0123456789"),  # base 60 in YAML 1.1
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - filled below

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def construct_whole_number(self, node: yaml.ScalarNode) -> int | str:
        try:
            return self.construct_yaml_int(node)
        except ValueError:  # more digits than Python converts; as text, the setting's own check names key and range
            return str(node.value)

    def refuse(self, node: yaml.ScalarNode) -> None:
        kind = "minutes or text" if ":" in node.value else "octal or decimal"
        digits = node.value.lstrip("+-0_") or "0"
        fix = "quote it" if ":" in node.value else f"write {digits}, or quote it"
        raise yaml.MarkedYAMLError(problem=f"{node.value} may be {kind}: {fix}", problem_mark=node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was: text that looks like a number to either version is quoted."""


for _tag, _pattern, _first in RESOLVERS:
    _Loader.add_implicit_resolver(
        _tag, re.compile(f"^(?:{_pattern})$"), [*_first, ""] if _pattern[-1] == "|" else list(_first)
    )
    if _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)
_Loader.add_constructor(AMBIGUOUS, _Loader.refuse)


def read_text(path: Path, error: type[MdprError] = ConfigError) -> str:
    """A regular file of UTF-8 text, at most `MAX_BYTES` long."""
    if not path.exists():
        raise error(f"{path} does not exist: run from the project folder, or name another file")
    if not path.is_file():
        raise error(f"{path} is not a regular file: name a file")
    if path.stat().st_size > MAX_BYTES:
        raise error(f"{path} has {path.stat().st_size} bytes, more than the limit of {MAX_BYTES}: name another file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{path} is not UTF-8 (byte {fault.start}): save it as UTF-8") from None
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}") from None


def parse_yaml(text: str, name: str) -> Any:
    """The content of YAML `text`; `name` (a file, an option) is named in the `ConfigError`."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark and "\n" in text.strip() else ""
        reason = one_line(getattr(fault, "problem", None) or fault)
        raise ConfigError(f"{name}{line} is not valid YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply") from None
    except ValueError as fault:  # a date that is none, behind an explicit tag
        raise ConfigError(f"{name} is not valid YAML: {fault}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping; raises `ConfigError`."""
    content = parse_yaml(read_text(path), str(path))
    if content is None:
        raise ConfigError(f"{path} is empty: write sections (`tune:` and so on), or restore it")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections (`tune:` and so on), not a {type(content).__name__}")
    return content


def dump_yaml(content: Mapping[str, Any]) -> str:
    """`content` as YAML in its own order, which `parse_yaml` reads back as it was."""
    text: str = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def parse_json(text: str, name: str, error: type[MdprError] = ConfigError) -> Any:
    """The content of JSON `text`; NaN, Infinity and a key that is given twice are errors."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_not_finite)
    except json.JSONDecodeError as fault:
        raise error(f"{name} is not valid JSON: {fault}") from None
    except RecursionError:
        raise error(f"{name} is nested too deeply") from None
    except ValueError as fault:
        raise error(f"{name} is not valid JSON: {str(fault).partition(';')[0]}") from None


def read_json(path: Path, error: type[MdprError] = ConfigError) -> Any:
    """A JSON file."""
    return parse_json(read_text(path, error), str(path), error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return content


def _not_finite(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")
