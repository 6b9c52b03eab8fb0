"""A deployment prior: class shares to expect where a model is used, and the exact change of its answers.

By Bayes' rule, probabilities under one prior become those under another by adding log(prior_deploy / prior_reference)
to the logits. prior_reference is the prior that the model's own answers assume: as `mdpr monitor` measured it, or else
what its loss makes of the training images. A loss that adjusts logits by tau log(count) leaves count^(1 - tau).
Source: Saerens, Latinne and Decaestecker, Neural Computation 14, 2002, equation 2.4.

Shapes: B images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.artifacts import ModelConfig
from mdpr.errors import ConfigError
from mdpr.params import read_json

UNIFORM = "uniform"
SUM_TOLERANCE = 0.01  # shares that people write are rounded
BALANCED_LOSSES = ("balanced_softmax", "class_balanced")
FORM = '{"class": share, ...}, or a monitor.json'


@dataclass(frozen=True)
class DeploymentPrior:
    """`log_ratio_C`: log(prior_deploy / prior_reference); `name`: `uniform` or the file it comes from."""

    name: str
    log_ratio_C: Tensor

    def adjust(self, log_probability_BC: Tensor) -> Tensor:
        """Log-probabilities under the deployment prior."""
        return F.log_softmax(log_probability_BC + self.log_ratio_C.to(log_probability_BC), dim=-1)

    def __str__(self) -> str:
        low, high = self.log_ratio_C.exp().aminmax()
        return f"deployment prior {self.name}: logits + log(share / assumed share), x{low:.2g} to x{high:.2g}"


def read_prior(source: str, config: ModelConfig) -> DeploymentPrior:
    """The prior `uniform`, or of a JSON file; raises `ConfigError`.

    A file holds a positive share for each class of the model, or is what `mdpr monitor` wrote. The shares sum to 1.
    """
    classes = config.class_names
    deploy_C = torch.full((len(classes),), 1 / len(classes), dtype=torch.float64)
    reference_C = assumed_prior(config)
    if source != UNIFORM:
        content = read_json(Path(source), ConfigError) if Path(source).exists() else None
        if not isinstance(content, dict):
            raise ConfigError(f"--prior {source} must be {UNIFORM} or a JSON file: {FORM}")
        shares, measured = content.get("shares", content), content.get("model_prior")
        deploy_C = _shares(f"--prior {source}", shares, classes)
        if isinstance(content.get("shares"), dict) and measured is not None:
            reference_C = _shares(f"--prior {source}: model_prior", measured, classes)
    return DeploymentPrior(source, (deploy_C.log() - reference_C.log()).float())


def assumed_prior(config: ModelConfig) -> Tensor:
    """The class shares (C,) that the model's answers assume, from its loss and its training images."""
    tune = config.tune
    tau = tune.loss.tau if tune.base_loss == "logit_adjusted" else float(tune.base_loss in BALANCED_LOSSES)
    if tune.sampling == "class_balanced" or tune.fusion == "gla":  # gla takes the training prior out itself
        tau = 1.0
    tau += config.tau
    count_C = torch.tensor(config.train_images, dtype=torch.float64).clamp(min=1)
    share_C = count_C ** (1 - tau)
    return share_C / share_C.sum()


def _shares(what: str, content: Any, classes: tuple[str, ...]) -> Tensor:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{what} must hold a share per class: {FORM}")
    if missing := [name for name in classes if name not in content]:
        raise ConfigError(f"{what} has no share of the model's class {missing[0]}: name all {len(classes)} classes")
    if unknown := sorted(set(map(str, content)) - set(classes)):
        raise ConfigError(f"{what}: {unknown[0]} is not a class of this model: take it out")
    for name in classes:
        value = content[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"{what}: {name} = {value!r} must be a number above 0")
    total = sum(content[name] for name in classes)
    if abs(total - 1) > SUM_TOLERANCE:
        raise ConfigError(f"{what}: the shares sum to {total:.4g}, not to 1")
    return torch.tensor([content[name] / total for name in classes], dtype=torch.float64)
