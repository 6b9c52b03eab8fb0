"""From the branches' logits to one answer, by name (`tune.fusion`).

    mean       softmax((base + routed) / 2): the paper's
    validated  softmax(w base + (1 - w) routed), w chosen on the validation images at the end of every epoch
    weighted   the same with a w that is learned on the training images, 1/2 at the start
    entropy    the same with a w for each image, from how sure each branch is of it
    gla        base, routed and the debiased zero-shot expert: softmax of the sum of their log-softmaxes
               (Zhu et al., Generalized Logit Adjustment, NeurIPS 2023, for the expert)

Every fusion gives log-probabilities (B, C). Without a router the answer is base's (for gla: with the expert).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdpr.artifacts import Probe
from mdpr.model.backbone import Backbone


def weigh(base_BC: Tensor, routed_BC: Tensor | None, base_weight: Tensor | float) -> Tensor:
    """softmax(w base + (1 - w) routed), as log-probabilities; without routed, base's."""
    if routed_BC is None:
        return F.log_softmax(base_BC, dim=-1)
    return F.log_softmax(base_weight * base_BC + (1 - base_weight) * routed_BC, dim=-1)


class Mean(nn.Module):
    """The paper's fusion."""

    learns = False

    def forward(self, base_BC: Tensor, routed_BC: Tensor | None, expert_BC: Tensor | None = None) -> Tensor:
        return weigh(base_BC, routed_BC, 0.5)


class Validated(Mean):
    """One scalar for all images, kept with the learned weights: the answer follows the better branch.

    At 1 the knowledge base has no say: sentences that are wrong cost next to nothing.
    """

    CANDIDATES = tuple(step / 20 for step in range(21))
    base_weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("base_weight", torch.tensor(0.5))

    def choose(self, accuracies: Sequence[float]) -> int:
        """Take the candidate with the best accuracy, of equal ones the nearest to 1/2; returns its place."""
        places = range(len(self.CANDIDATES))
        best = max(places, key=lambda place: (accuracies[place], -abs(self.CANDIDATES[place] - 0.5)))
        self.base_weight.fill_(self.CANDIDATES[best])
        return best

    def forward(self, base_BC: Tensor, routed_BC: Tensor | None, expert_BC: Tensor | None = None) -> Tensor:
        return weigh(base_BC, routed_BC, self.base_weight)


class Weighted(Mean):
    """One scalar for all images, learned on the fused loss with both branches detached."""

    learns = True

    def __init__(self) -> None:
        super().__init__()
        self.logit_weight = nn.Parameter(torch.zeros(()))

    def forward(self, base_BC: Tensor, routed_BC: Tensor | None, expert_BC: Tensor | None = None) -> Tensor:
        return weigh(base_BC, routed_BC, self.logit_weight.sigmoid())


class Entropy(Mean):
    """Each image leans on the branch that is surer of it: weights softmax(1 - H(p) / log C) over branches."""

    def forward(self, base_BC: Tensor, routed_BC: Tensor | None, expert_BC: Tensor | None = None) -> Tensor:
        if routed_BC is None:
            return weigh(base_BC, None, 1.0)
        branches_2BC = torch.stack([base_BC, routed_BC])
        log_p_2BC = F.log_softmax(branches_2BC, dim=-1)
        sureness_2B = 1 + (log_p_2BC.exp() * log_p_2BC).sum(dim=-1) / math.log(base_BC.shape[-1])
        return weigh(base_BC, routed_BC, sureness_2B.softmax(dim=0)[0, :, None])


class GeneralizedLogitAdjustment(Mean):
    """A product of experts; the third is s <x_frozen, t_zero-shot> - log q, q the estimated pre-training prior.

    Nothing of it learns, so training goes without the third expert and the frozen tower's pass that feeds it.
    """

    text_Cd: Tensor
    log_prior_C: Tensor

    def __init__(self, probe: Probe | None, classes: int, backbone: Backbone) -> None:
        super().__init__()
        text_Cd = torch.zeros(classes, backbone.embed_width) if probe is None else torch.as_tensor(probe.text_Cd)
        log_prior_C = torch.zeros(classes) if probe is None else torch.as_tensor(probe.log_prior_C)
        self.register_buffer("text_Cd", text_Cd.float())
        self.register_buffer("log_prior_C", log_prior_C.float())

    def expert(self, frozen_Bd: Tensor, scale: Tensor) -> Tensor:
        """Debiased zero-shot logits (B, C) from unit-length features of the frozen tower."""
        return scale * frozen_Bd @ self.text_Cd.T - self.log_prior_C

    def forward(self, base_BC: Tensor, routed_BC: Tensor | None, expert_BC: Tensor | None = None) -> Tensor:
        experts = [logits for logits in (base_BC, routed_BC, expert_BC) if logits is not None]
        return F.log_softmax(torch.stack([F.log_softmax(logits, dim=-1) for logits in experts]).sum(dim=0), dim=-1)


FUSIONS: dict[str, Callable[[Probe | None, int, Backbone], Mean]] = {
    "mean": lambda probe, classes, backbone: Mean(),
    "validated": lambda probe, classes, backbone: Validated(),
    "weighted": lambda probe, classes, backbone: Weighted(),
    "entropy": lambda probe, classes, backbone: Entropy(),
    "gla": GeneralizedLogitAdjustment,
}


def build_fusion(name: str, probe: Probe | None, classes: int, backbone: Backbone) -> Mean:
    """The fusion called `name`. `probe` feeds gla's expert; without it a saved state must fill the expert's buffers.

    Raises `ArtifactError` if the probe belongs to another backbone.
    """
    if probe is not None:
        backbone.check_fingerprint("probe", probe.fingerprint)
    return FUSIONS[name](probe, classes, backbone)
