"""A stage's parameters, as the YAML text that a component takes, for several tasks that run side by side.

Pure: what the components do with it is in `mdpr.stages.kubeflow_variants`.

shards: shares of the classes, for `describe`. settings: of one sweep, for `tune`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mdpr.config import DescribeParams, parse_params
from mdpr.errors import ConfigError
from mdpr.stages.kubeflow import lay_over, read_sections

SHARED_LIMITS = ("requests_per_minute", "tokens_per_minute")  # of describe.llm: over all calls; 0 is none


def shard_params(params: str, shards: int) -> list[str]:
    """`params` (section describe) for each of `shards` shares of the classes.

    The budget and the limits a minute hold for all shards together, so each gets its share of them. Raises
    `ConfigError` for a number of shards that is none, or among which a limit cannot be divided.
    """
    if shards < 1:
        raise ConfigError(f"shards = {shards}: must be 1 or more")
    section = parse_params(read_sections(params, "params"))["describe"]
    assert isinstance(section, DescribeParams)
    if section.shard:
        raise ConfigError(f"describe.shard = {section.shard} is set: leave it empty, the pipeline sets it")
    llm: dict[str, Any] = {}
    for name in SHARED_LIMITS:
        limit = getattr(section.llm, name)
        if 0 < limit < shards:
            raise ConfigError(f"describe.llm.{name} = {limit} cannot be shared by {shards} shards: make fewer")
        llm[name] = limit // shards
    changed = section.model_dump(mode="json") | {"budget_usd": section.budget_usd / shards}
    changed["llm"] |= llm
    return [as_text({"describe": changed | {"shard": f"{number}/{shards}"}}) for number in range(1, shards + 1)]


def vary_params(params: str, settings: Sequence[str]) -> list[str]:
    """`params` (sections backbone, tracking and tune) under each of `settings`, YAML text with keys of tune.

    Raises `ConfigError` for a setting that is none of tune's, a value that is not allowed, and two that are the same.
    """
    base = read_sections(params, "params")
    if not settings:
        raise ConfigError("settings is empty: name one at least, like tune: {seed: 1}")
    varied: dict[str, str] = {}
    for setting in settings:
        changes = read_sections(setting, f"setting {setting!r}")
        if other := sorted(set(changes) - {"tune"}):
            raise ConfigError(f"setting {setting!r}: {other[0]} is not tune: a sweep varies the settings of tune alone")
        merged = base | {"tune": lay_over(base.get("tune", {}), changes.get("tune") or {})}
        sections = parse_params(merged)
        text = as_text({name: sections[name].model_dump(mode="json") for name in merged})
        if text in varied:
            raise ConfigError(f"settings {varied[text]!r} and {setting!r} are the same: each is tuned once")
        varied[text] = setting
    return list(varied)


def as_text(sections: dict[str, Any]) -> str:
    return yaml.safe_dump(sections, sort_keys=False)
