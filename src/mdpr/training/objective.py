"""The whole loss of a batch, term by term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdpr.artifacts import Features
from mdpr.model.classifier import MDPR, Outputs
from mdpr.training.losses import (
    BASE_LOSSES,
    compensated_cross_entropy,
    knowledge_alignment,
    log_class_prior,
    prior_alignment,
    ramp,
)


class Objective(nn.Module):
    """The weighted terms for a model, its training counts and its knowledge base.

    Raises nothing of its own: a term that is no number is found by the loop, which knows the step.
    """

    def __init__(self, model: MDPR, counts: Sequence[int], features: Features | None) -> None:
        super().__init__()
        params = model.params
        self.model = model
        self.weights = params.loss
        self.epochs = params.epochs
        device = model.backbone.device
        counts_C = torch.tensor(list(counts), device=device)
        self.base = BASE_LOSSES[params.base_loss](counts_C, params.loss.tau, model.backbone.logit_scale.item())
        self.log_prior_C = log_class_prior(counts_C)
        if features is not None:
            self.prior_CV = torch.as_tensor(features.prior_CV, device=device)
            self.summary_Cd = torch.as_tensor(features.summary_Cd, device=device)

    def terms(self, outputs: Outputs, label_B: Tensor, epoch: int) -> dict[str, Tensor]:
        """Weighted terms whose sum is the loss: base; with a router semantic, prior_alignment, knowledge_alignment
        (and fusion, where that learns). Each is a mean over images, computed in float32 whatever the autocast."""
        with torch.autocast(label_B.device.type, enabled=False):
            return self._terms(_single_precision(outputs), label_B, epoch)

    def _terms(self, outputs: Outputs, label_B: Tensor, epoch: int) -> dict[str, Tensor]:
        weights = self.weights
        terms = {"base": weights.base * self.base(outputs.base_BC, label_B)}
        if outputs.routed_BC is None:
            return terms
        assert outputs.weights_BCV is not None
        assert outputs.true_Bd is not None
        assert self.model.align is not None
        strength = ramp(epoch, self.epochs)
        semantic = compensated_cross_entropy(outputs.routed_BC, label_B, self.log_prior_C, weights.tau)
        alignment = knowledge_alignment(outputs.true_Bd, self.summary_Cd[label_B], self.model.align)
        if self.model.fusion.learns:
            adjusted_BC = outputs.fused_BC + weights.tau * self.log_prior_C
            terms["fusion"] = F.cross_entropy(adjusted_BC, label_B)
        return terms | {
            "semantic": strength * weights.semantic * semantic,
            "prior_alignment": weights.prior_alignment * prior_alignment(outputs.weights_BCV, self.prior_CV),
            "knowledge_alignment": strength * weights.knowledge_alignment * alignment,
        }


def _single_precision(outputs: Outputs) -> Outputs:
    """Half-precision outputs as float32; the others as they are."""
    half = {
        item.name: value.float()
        for item in fields(outputs)
        if (value := getattr(outputs, item.name)) is not None and value.dtype in (torch.bfloat16, torch.float16)
    }
    return replace(outputs, **half)
