"""From the branches' logits to one answer, by name (`tune.fusion`).

    mean       softmax((base + routed) / 2): the paper's
    validated  softmax(w base + (1 - w) routed), w chosen on the validation images at the end of every epoch
    weighted   the same with a w that is learned on the training images, 1/2 at the start
    entropy    the same with a w for each image, from how sure each branch is of it
    gla        base, routed and the debiased zero-shot expert: softmax of the sum of their log-softmaxes, each at a
               temperature that is calibrated on the validation images (Zhu et al., Generalized Logit Adjustment,
               NeurIPS 2023)

Every fusion gives log-probabilities (B, C). Without a router the answer is base's (for gla: with the expert).

`tune.post_hoc` adjusts that answer by the shares of the training images, with a strength tau that is chosen on the
validation images once the weights are final.

Shapes: B images in a batch, C classes, K answers to the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdpr.artifacts import Probe
from mdpr.model.backbone import Backbone

UNCOMPENSATED = ("ce", "focal")  # base losses under which the base branch learns the training counts along


def weigh(base_BC: Tensor, routed_BC: Tensor | None, base_weight: Tensor | float) -> Tensor:
    """softmax(w base + (1 - w) routed), as log-probabilities; without routed, base's."""
    if routed_BC is None:
        return F.log_softmax(base_BC, dim=-1)
    return F.log_softmax(base_weight * base_BC + (1 - base_weight) * routed_BC, dim=-1)


Experts = tuple[Tensor, Tensor | None, Tensor | None]  # base, routed and zero-shot logits (B, C)


class Mean(nn.Module):
    """The paper's fusion."""

    learns = False

    def forward(self, base_BC: Tensor, routed_BC: Tensor | None, expert_BC: Tensor | None = None) -> Tensor:
        return weigh(base_BC, routed_BC, 0.5)

    def calibrate(self, batches: Iterable[tuple[Tensor, Experts]], total: Callable[[Tensor], Tensor]) -> None:
        """Fit what is fitted on validation images before they are scored; `batches` is read only if there is such.

        `batches` are labels (B,) and logits of the branches; `total` sums a tensor over all processes.
        """


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
    """A product of experts without the priors of the data that they learned from.

    base       minus log pi, the training prior, if the base loss does not compensate for it (`UNCOMPENSATED`)
    routed     as it is: its loss always compensates
    zero-shot  s <x_frozen, t_zero-shot> - log q, q the estimated pre-training prior

    Each is multiplied by an inverse temperature, 1 at first, then the one of `CANDIDATES` with the least class-balanced
    cross entropy on the validation images. Nothing of it is trained, so training goes without the third expert and the
    frozen tower's pass that feeds it.
    """

    CANDIDATES = tuple(2 ** (step / 4) for step in range(-12, 9))
    text_Cd: Tensor
    log_prior_C: Tensor
    log_train_C: Tensor
    inverse_temperature_3: Tensor

    def __init__(self, probe: Probe | None, classes: int, backbone: Backbone, base_loss: str) -> None:
        super().__init__()
        text_Cd = torch.zeros(classes, backbone.embed_width) if probe is None else torch.as_tensor(probe.text_Cd)
        log_prior_C = torch.zeros(classes) if probe is None else torch.as_tensor(probe.log_prior_C)
        log_train_C = torch.zeros(classes)
        if probe is not None and base_loss in UNCOMPENSATED:
            log_train_C = log_shares(probe.train_images_C.tolist())
        self.register_buffer("text_Cd", text_Cd.float())
        self.register_buffer("log_prior_C", log_prior_C.float())
        self.register_buffer("log_train_C", log_train_C)
        self.register_buffer("inverse_temperature_3", torch.ones(3))

    def expert(self, frozen_Bd: Tensor, scale: Tensor) -> Tensor:
        """Debiased zero-shot logits (B, C) from unit-length features of the frozen tower."""
        return scale * frozen_Bd @ self.text_Cd.T - self.log_prior_C

    def calibrate(self, batches: Iterable[tuple[Tensor, Experts]], total: Callable[[Tensor], Tensor]) -> None:
        device, classes = self.log_prior_C.device, len(self.log_prior_C)
        images_C = torch.zeros(classes, dtype=torch.float64, device=device)
        loss_3TC = torch.zeros(3, len(self.CANDIDATES), classes, dtype=torch.float64, device=device)
        for label_B, (base_BC, routed_BC, expert_BC) in batches:
            label_B = label_B.to(device)
            images_C += torch.bincount(label_B, minlength=classes)
            for loss_TC, logits_BC in zip(loss_3TC, (base_BC - self.log_train_C, routed_BC, expert_BC), strict=True):
                if logits_BC is None:
                    continue
                for loss_C, inverse in zip(loss_TC, self.CANDIDATES, strict=True):
                    loss_B = F.cross_entropy(inverse * logits_BC, label_B, reduction="none")
                    loss_C.index_add_(0, label_B, loss_B.double())
        images_C, loss_3TC = total(images_C.cpu()), total(loss_3TC.cpu())
        seen_C = images_C > 0
        mean_3T = (loss_3TC[..., seen_C] / images_C[seen_C]).mean(dim=-1)
        self.inverse_temperature_3.copy_(torch.tensor(self.CANDIDATES)[mean_3T.argmin(dim=1)])

    def forward(self, base_BC: Tensor, routed_BC: Tensor | None, expert_BC: Tensor | None = None) -> Tensor:
        experts = (base_BC - self.log_train_C, routed_BC, expert_BC)
        weighed = [
            F.log_softmax(inverse * logits, dim=-1)
            for inverse, logits in zip(self.inverse_temperature_3, experts, strict=True)
            if logits is not None
        ]
        return F.log_softmax(torch.stack(weighed).sum(dim=0), dim=-1)


TAUS = np.linspace(0, 2, 21)  # 0: no adjustment


def log_shares(train_images: Sequence[int]) -> Tensor:
    """log pi (C,): each class's share of the training images, counts + 1."""
    return F.log_softmax((torch.tensor(train_images, dtype=torch.float32) + 1).log(), dim=0)


def adjust(log_probability_BC: Tensor, tau: float, log_share_C: Tensor) -> Tensor:
    """log p - tau log pi, as log-probabilities (post-hoc logit adjustment: Menon et al., ICLR 2021, equation 9)."""
    return F.log_softmax(log_probability_BC - tau * log_share_C, dim=-1)


class RecallCounter:
    """The recall of each class by K answers to the same images, batch by batch. Scores are not kept."""

    def __init__(self, answers: int, classes: int) -> None:
        self.images_C = torch.zeros(classes, dtype=torch.int64)
        self.hits_KC = torch.zeros(answers, classes, dtype=torch.int64)

    def add(self, label_B: Tensor, scores: Iterable[Tensor]) -> None:
        """One (B, C) tensor per answer, in the same order in every batch."""
        label_B, classes = label_B.cpu(), len(self.images_C)
        self.images_C += torch.bincount(label_B, minlength=classes)
        for hits_C, scores_BC in zip(self.hits_KC, scores, strict=True):
            hits_C += torch.bincount(label_B[scores_BC.argmax(dim=-1).cpu() == label_B], minlength=classes)

    def sum(self, total: Callable[[Tensor], Tensor]) -> None:
        """Count the images of all processes; `total` sums a tensor over them."""
        counts = total(torch.cat([self.images_C[None], self.hits_KC]))
        self.images_C, self.hits_KC = counts[0], counts[1:]

    def recall_KC(self) -> np.ndarray:
        """NaN where a class has no image."""
        images_C, hits_KC = self.images_C.numpy(), self.hits_KC.numpy()
        return np.divide(hits_KC, images_C, out=np.full(hits_KC.shape, np.nan), where=images_C > 0)

    def balanced_accuracy(self) -> np.ndarray:
        """The mean over the classes that have images, (K,)."""
        return np.nanmean(self.recall_KC(), axis=1)

    def best(self, values: np.ndarray, least: float) -> tuple[float, float]:
        """The value (K of them, in order of the answers) with the best balanced accuracy, and that accuracy.

        Of equally good ones the nearest to `least`, which changes the model least.
        """
        accuracy_K = self.balanced_accuracy()
        best_k = values[np.isclose(accuracy_K, accuracy_K.max(), rtol=0, atol=1e-12)]
        return float(best_k[np.abs(best_k - least).argmin()]), float(accuracy_K.max())


FUSIONS: dict[str, Callable[[Probe | None, int, Backbone, str], Mean]] = {
    "mean": lambda probe, classes, backbone, base_loss: Mean(),
    "validated": lambda probe, classes, backbone, base_loss: Validated(),
    "weighted": lambda probe, classes, backbone, base_loss: Weighted(),
    "entropy": lambda probe, classes, backbone, base_loss: Entropy(),
    "gla": GeneralizedLogitAdjustment,
}


def build_fusion(
    name: str, probe: Probe | None, classes: int, backbone: Backbone, base_loss: str = "logit_adjusted"
) -> Mean:
    """The fusion called `name`, for a base branch trained with `base_loss`.

    `probe` feeds gla; without it a saved state must fill its buffers. Raises `ArtifactError` if the probe belongs to
    another backbone.
    """
    if probe is not None:
        backbone.check_fingerprint("probe", probe.fingerprint)
    return FUSIONS[name](probe, classes, backbone, base_loss)
