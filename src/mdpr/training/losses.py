"""The loss: its terms, the base losses by name, and `Objective`, which weighs the terms for a model.

    L = w_base base(logits_base, y) + r w_sem CE(logits_sem + tau log pi, y)
      + w_pa mean(1 - cos(A, M)) + r w_ka KL(softmax(g(m_y)/k) || softmax(g(z_y/||z_y||)/k))

Shapes: B images, C classes, V dimensions, d joint embedding width.
Source: Jia et al., Findings of EMNLP 2025, section 3; what the text leaves open follows its published settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdpr.artifacts import Features
from mdpr.model.classifier import MDPR, Outputs

BaseLoss = Callable[[Tensor, Tensor], Tensor]

KNOWLEDGE_TEMPERATURE = 2.0  # k
LDAM_MAX_MARGIN = 0.5  # Cao et al., NeurIPS 2019: on cosines, before the scale
FOCAL_GAMMA = 2.0  # Lin et al., ICCV 2017
CLASS_BALANCED_BETA = 0.9999  # Cui et al., CVPR 2019


def log_class_prior(counts_C: Tensor) -> Tensor:
    """log pi, (C,): training counts plus one, normalised."""
    smoothed = counts_C.float() + 1
    return (smoothed / smoothed.sum()).log()


def compensated_cross_entropy(logits_BC: Tensor, label_B: Tensor, log_prior_C: Tensor, tau: float) -> Tensor:
    """Cross entropy of logits + tau log pi (logit adjustment: Menon et al., ICLR 2021)."""
    return F.cross_entropy(logits_BC + tau * log_prior_C, label_B)


def _logit_adjusted(counts_C: Tensor, tau: float, scale: float) -> BaseLoss:
    return partial(compensated_cross_entropy, log_prior_C=log_class_prior(counts_C), tau=tau)


def _balanced_softmax(counts_C: Tensor, tau: float, scale: float) -> BaseLoss:
    """Ren et al., NeurIPS 2020: logits + log n_c."""
    shift_C = counts_C.float().log()
    return lambda logits_BC, label_B: F.cross_entropy(logits_BC + shift_C, label_B)


def _ldam(counts_C: Tensor, tau: float, scale: float) -> BaseLoss:
    """Cao et al., NeurIPS 2019: a margin proportional to n_c^(-1/4) on the true class's cosine."""
    margin_C = counts_C.float().pow(-0.25)
    margin_C = scale * LDAM_MAX_MARGIN * margin_C / margin_C.max()

    def loss(logits_BC: Tensor, label_B: Tensor) -> Tensor:
        true_BC = F.one_hot(label_B, logits_BC.shape[1])
        return F.cross_entropy(logits_BC - true_BC * margin_C, label_B)

    return loss


def _focal(counts_C: Tensor, tau: float, scale: float) -> BaseLoss:
    """Lin et al., ICCV 2017: (1 - p_y)^gamma times the cross entropy."""

    def loss(logits_BC: Tensor, label_B: Tensor) -> Tensor:
        cross_entropy_B = F.cross_entropy(logits_BC, label_B, reduction="none")
        return ((1 - (-cross_entropy_B).exp()) ** FOCAL_GAMMA * cross_entropy_B).mean()

    return loss


def _class_balanced(counts_C: Tensor, tau: float, scale: float) -> BaseLoss:
    """Cui et al., CVPR 2019: each class weighted by 1 / its effective number of images, weights of mean 1."""
    weight_C = (1 - CLASS_BALANCED_BETA) / (1 - CLASS_BALANCED_BETA ** counts_C.float())
    weight_C = weight_C * len(weight_C) / weight_C.sum()

    def loss(logits_BC: Tensor, label_B: Tensor) -> Tensor:
        return (weight_C[label_B] * F.cross_entropy(logits_BC, label_B, reduction="none")).mean()

    return loss


# name -> (training counts, tau, logit scale) -> loss of (logits, labels)
BASE_LOSSES: dict[str, Callable[[Tensor, float, float], BaseLoss]] = {
    "ce": lambda counts_C, tau, scale: F.cross_entropy,
    "logit_adjusted": _logit_adjusted,
    "balanced_softmax": _balanced_softmax,
    "ldam": _ldam,
    "focal": _focal,
    "class_balanced": _class_balanced,
}


def prior_alignment(weights_BCV: Tensor, prior_CV: Tensor) -> Tensor:
    """Mean over images and classes of 1 - cos(A[b,c,:], M[c,:])."""
    return (1 - F.cosine_similarity(weights_BCV, prior_CV[None], dim=-1)).mean()


def knowledge_alignment(true_Bd: Tensor, summary_Bd: Tensor, align: nn.Linear) -> Tensor:
    """KL from the class summary to the routed text of the true class, after g; the summary's side is detached."""
    target = align(summary_Bd).detach().div(KNOWLEDGE_TEMPERATURE).log_softmax(dim=-1)
    routed = align(F.normalize(true_Bd, dim=-1)).div(KNOWLEDGE_TEMPERATURE).log_softmax(dim=-1)
    return F.kl_div(routed, target, reduction="batchmean", log_target=True)


def ramp(epoch: int, epochs: int) -> float:
    """r(epoch) = min(1, 0.01 + 0.99 epoch / epochs): the routed branch's terms grow with training."""
    return min(1.0, 0.01 + 0.99 * epoch / epochs)


class Objective(nn.Module):
    """The weighted terms of a model's loss, for its training counts (C,) and its knowledge base (with a router).

    A term that is not finite is not an error here: the loop finds it, because it knows the step.
    """

    def __init__(self, model: MDPR, counts: Sequence[int], features: Features | None) -> None:
        super().__init__()
        params = model.params
        self.model = model
        self.weights = params.loss
        self.epochs = params.epochs
        device = model.backbone.device
        counts_C = torch.tensor(list(counts), device=device)
        self.base = BASE_LOSSES[params.base_loss](counts_C, params.loss.tau, model.base_scale.item())
        self.log_prior_C = log_class_prior(counts_C)
        if features is not None:
            self.prior_CV = torch.as_tensor(features.prior_CV, device=device)
            self.summary_Cd = torch.as_tensor(features.summary_Cd, device=device)

    def terms(self, outputs: Outputs, label_B: Tensor, epoch: int) -> dict[str, Tensor]:
        """Weighted terms whose sum is the loss: base; with a router also semantic, prior_alignment and
        knowledge_alignment; with a fusion that learns also fusion. Each is a mean over images, computed in float32."""
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
        strength = ramp(epoch, self.epochs) if weights.ramp else 1.0
        semantic = compensated_cross_entropy(outputs.routed_BC, label_B, self.log_prior_C, weights.tau)
        alignment = knowledge_alignment(outputs.true_Bd, self.summary_Cd[label_B], self.model.align)
        aligned = outputs.weights_BCV.new_zeros(())
        if weights.prior_alignment:  # else not computed: it holds several tensors of B x C x V numbers
            aligned = weights.prior_alignment * prior_alignment(outputs.weights_BCV, self.prior_CV)
        if self.model.fusion.learns:
            terms["fusion"] = compensated_cross_entropy(outputs.fused_BC, label_B, self.log_prior_C, weights.tau)
        return terms | {
            "semantic": strength * weights.semantic * semantic,
            "prior_alignment": aligned,
            "knowledge_alignment": strength * weights.knowledge_alignment * alignment,
        }


def _single_precision(outputs: Outputs) -> Outputs:
    """`outputs` with bfloat16 and float16 tensors as float32."""
    half = {
        item.name: value.float()
        for item in fields(outputs)
        if (value := getattr(outputs, item.name)) is not None and value.dtype in (torch.bfloat16, torch.float16)
    }
    return replace(outputs, **half)
