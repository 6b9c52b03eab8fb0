"""Variants of the tuned model, never trained again: rows of their own beside the main result.

    ablation   routing taken apart: the same learned weights with other sentences, or with some left out
    robust     test-time ensembling, post-hoc adjustment

All ablations together cost two passes of the router and none of the image tower. What needs choosing is chosen on the
validation images, by class-balanced accuracy; of equal choices the one that changes the model least.

Shapes: N validation images, B images in a batch, C classes, V dimensions, d joint width, W views of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mdpr.evaluation.score_table import DROP, LEAST, MOST, NAMES_ONLY, SHUFFLED
from mdpr.images.loading import ImageTransform
from mdpr.model.classifier import Outputs
from mdpr.model.fusion import TAUS, RecallCounter, Validated, adjust, log_shares, weigh
from mdpr.model.inference import Classifier
from mdpr.model.routing import RouterTable
from mdpr.params import DIMENSIONS

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class BatchOutputs:
    """The main pass over a batch: the images, every branch, and the debiased expert if the fusion has one."""

    image_B3HW: Tensor
    outputs: Outputs
    expert_BC: Tensor | None


class Variant(Protocol):
    """Other answers to a batch of the main pass."""

    kind: str

    def log_probabilities(self, batch: BatchOutputs) -> dict[str, Tensor]:
        """(B, C) log-probabilities by name; the same names for every batch."""


def uniform(prior_CV: Tensor) -> Tensor:
    """Every sentence counts alike, for every image: knowledge without routing."""
    return torch.full_like(prior_CV, 1 / prior_CV.shape[1])


def prior_only(prior_CV: Tensor) -> Tensor:
    """Weights in proportion to the prior M (its cosines, negative ones as 0), the same for every image."""
    weights_CV = prior_CV.clamp_min(0) + torch.finfo(prior_CV.dtype).tiny
    return weights_CV / weights_CV.sum(dim=1, keepdim=True)


def shuffled(classes: int) -> Tensor:
    """For each class (C,) the one whose sentences it gets, always another: what is left is not knowledge."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(classes))
    source_C = torch.empty_like(order)
    source_C[order] = order.roll(1)  # one cycle through all classes: none keeps its own
    return source_C


# The dimensions that count: the router never sees the sentences of the others.
KEPT = {f"{DROP}{left_out}": [n for n, key in enumerate(DIMENSIONS) if key != left_out] for left_out in DIMENSIONS}
# Prior M (C, V) -> routing weights (C, V) that take the place of the image's own.
WEIGHTS = {"uniform_routing": uniform, "prior_only": prior_only}
ABLATION_NAMES = (*KEPT, *WEIGHTS, SHUFFLED, NAMES_ONLY, MOST, LEAST)


class RoutingAblations:
    """The fused answer with each of `names`' changes of the router's input; the model itself is not touched.

    Sentences of other classes are the model's own routed logits in another order of the classes; what a dimension or a
    fixed weight changes comes from one computation of the router (`Router.ablate`). Only the class names need a table
    of their own.

    `prior_CV` is M of `mdpr.artifacts.Features`, `name_Cd` a unit-length text feature per class name.
    """

    kind = "ablation"

    def __init__(self, classifier: Classifier, prior_CV: np.ndarray, name_Cd: np.ndarray, names: Sequence[str]) -> None:
        self._model = classifier.model
        self._names = names
        assert self._model.router is not None, "this model has no router"
        assert classifier.constants.table is not None
        self._router, self._table = self._model.router, classifier.constants.table
        sentences_CVd = self._model.sentences_CVd
        prior, name = (
            torch.as_tensor(array, dtype=torch.float32, device=sentences_CVd.device) for array in (prior_CV, name_Cd)
        )
        deletion = {MOST, LEAST} & set(names)  # takes its answers from those without each dimension
        kept = [name for name in KEPT if deletion or name in names]
        weights = [name for name in WEIGHTS if name in names]
        self._shared = [*kept, *weights]
        self._kept = [KEPT[name] for name in kept]
        self._weights_FCV = torch.cat(
            [prior.new_empty(0, *prior.shape), *(WEIGHTS[name](prior)[None] for name in weights)]
        )
        self._source_C = shuffled(len(prior)).to(prior.device) if SHUFFLED in names else None
        self._name_table: RouterTable | None = None
        if NAMES_ONLY in names:
            with torch.no_grad():
                self._name_table = self._router.table(name[:, None].expand_as(sentences_CVd))

    def log_probabilities(self, batch: BatchOutputs) -> dict[str, Tensor]:
        """(B, C) for every ablation."""
        outputs, scale = batch.outputs, self._model.logit_scale
        assert outputs.routed_BC is not None

        def fuse(routed_BC: Tensor) -> Tensor:
            return self._model.answer(outputs.base_BC, routed_BC, batch.expert_BC)

        found: dict[str, Tensor] = {}
        if self._source_C is not None:
            found[SHUFFLED] = fuse(outputs.routed_BC[:, self._source_C])
        if self._shared:
            similarity_ABC = self._router.ablate(outputs.image_Bd, self._table, self._kept, self._weights_FCV)
            found |= {name: fuse(scale * part_BC) for name, part_BC in zip(self._shared, similarity_ABC, strict=True)}
        if self._name_table is not None:
            every, none_FCV = [range(len(DIMENSIONS))], self._weights_FCV[:0]
            found[NAMES_ONLY] = fuse(
                scale * self._router.ablate(outputs.image_Bd, self._name_table, every, none_FCV)[0]
            )
        if {MOST, LEAST} & set(self._names):
            weights_BV = Classifier.consult(outputs, outputs.fused_BC.argmax(dim=-1))
            found[MOST] = _without(weights_BV.argmax(dim=1), found)
            found[LEAST] = _without(weights_BV.argmin(dim=1), found)
        return {name: found[name] for name in self._names}


def _without(dimension_B: Tensor, found: Mapping[str, Tensor]) -> Tensor:
    """For each image the answer without one dimension of its own."""
    rows = (found[f"{DROP}{DIMENSIONS[index]}"][row] for row, index in enumerate(dimension_B.tolist()))
    return torch.stack(list(rows))


FIVE_CROP_RESIZE = 8 / 7  # 256 to 224, as for ImageNet
LIFT_RESIZE = 1 + 24 / 224  # 248 to 224 (Shi et al., LIFT, ICML 2024)


class Flipped:
    """The mean probability of an image and its mirror image."""

    kind = "robust"

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def log_probabilities(self, batch: BatchOutputs) -> dict[str, Tensor]:
        mirrored = self._classifier(batch.image_B3HW.flip(-1)).fused_BC
        return {"flip_ensemble": mean_probability(torch.stack([batch.outputs.fused_BC, mirrored]))}


class PostHoc:
    """Logit adjustment with tau, and w base + (1 - w) routed, tau and w chosen on validation.

    For a model that is adjusted already (`tune.post_hoc`), the first is the answer without the adjustment.
    """

    kind = "robust"

    def __init__(self, classifier: Classifier, val_batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._model = classifier.model
        self._log_share_C = log_shares(classifier.config.train_images).to(classifier.device)
        self._applied = classifier.config.tune.post_hoc == "validated"
        classes = len(self._log_share_C)
        adjusted, weighed = (RecallCounter(len(values), classes) for values in (TAUS, Validated.CANDIDATES))
        for image_B3HW, label_B in val_batches:
            outputs = classifier(image_B3HW)
            if not self._applied:
                adjusted.add(label_B, (adjust(outputs.fused_BC, tau, self._log_share_C) for tau in TAUS))
            if outputs.routed_BC is not None:
                weighed.add(label_B, (self._weigh(outputs, weight) for weight in Validated.CANDIDATES))
        self.tau = -classifier.config.tau if self._applied else adjusted.best(TAUS, least=0.0)[0]
        self.base_weight: float | None = None
        if classifier.model.router is not None:
            self.base_weight = weighed.best(np.array(Validated.CANDIDATES), least=0.5)[0]

    def log_probabilities(self, batch: BatchOutputs) -> dict[str, Tensor]:
        outputs = batch.outputs
        name = "without_logit_adjustment" if self._applied else f"logit_adjusted (tau {self.tau:.1f})"
        answers = {name: adjust(outputs.fused_BC, self.tau, self._log_share_C)}
        if self.base_weight is not None:
            answers[f"fusion_weight (base {self.base_weight:.2f})"] = self._weigh(outputs, self.base_weight)
        return answers

    def _weigh(self, outputs: Outputs, base_weight: float) -> Tensor:
        return self._model.adjusted(weigh(outputs.base_BC, outputs.routed_BC, base_weight))


def mean_probability(log_probability_WBC: Tensor) -> Tensor:
    """The mean of W probability vectors, as log-probabilities (B, C)."""
    return log_probability_WBC.logsumexp(dim=0) - np.log(len(log_probability_WBC))


def mean_logits(log_probability_WBC: Tensor) -> Tensor:
    """The answer of W averaged logits, as log-probabilities (B, C): what the softmax took off each view cancels."""
    return F.log_softmax(log_probability_WBC.mean(dim=0), dim=-1)


@dataclass(frozen=True)
class Views:
    """An ensemble over crops of each test image (`evaluate.test_time`).

    enlarged  size of the picture that is cropped, over the model's own
    flips     the mirror images of the crops too
    mean      from log-probabilities of the views (W, B, C) to the answer's (B, C)
    """

    enlarged: float
    flips: bool
    mean: Callable[[Tensor], Tensor]


VIEWS = {
    "five_crop": Views(FIVE_CROP_RESIZE, False, mean_probability),
    "five_crop_flip": Views(FIVE_CROP_RESIZE, True, mean_probability),
    "lift": Views(LIFT_RESIZE, False, mean_logits),
}


def five_crop_transform(classifier: Classifier, views: Views) -> ImageTransform:
    """Corners and centre of a somewhat larger picture, (W, 3, H, W) with W = 5, or 10 with their mirror images."""
    size_px = classifier.image_size_px
    fixed = partial(_crops, size_px=size_px, larger_px=round(size_px * views.enlarged), flips=views.flips)
    return replace(classifier.transform, fixed=fixed)


def _crops(image: Image.Image, size_px: int, larger_px: int, flips: bool) -> Tensor:
    larger = vision.resize(image, [larger_px], interpolation=InterpolationMode.BICUBIC)
    crops = torch.stack([vision.pil_to_tensor(crop) for crop in vision.five_crop(larger, [size_px])])
    return torch.cat([crops, crops.flip(-1)]) if flips else crops
