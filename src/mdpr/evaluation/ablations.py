"""Variants of the tuned model, never trained again: rows of their own beside the main result.

    ablation   routing taken apart: the same learned weights with other sentences, or with some left out
    robust     test-time ensembling, post-hoc adjustment

An ablation changes only the router's table of the classes, so it costs a pass of the router and none of the image
tower. What needs choosing is chosen on the validation images, by class-balanced accuracy; of equal choices the one that
changes the model least.

Shapes: N validation images, B images in a batch, C classes, V dimensions, d joint width, W views of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mdpr.evaluation.metrics import class_recall, score_branch
from mdpr.evaluation.predictions import final_branch
from mdpr.evaluation.score_table import GROUPS
from mdpr.evaluation.uncertainty import gain_intervals
from mdpr.images.loading import ImageTransform
from mdpr.model.classifier import Outputs
from mdpr.model.fusion import Validated, weigh
from mdpr.model.inference import Classifier
from mdpr.params import DIMENSIONS

if TYPE_CHECKING:
    from PIL import Image


FIGURES = (*GROUPS, "worst_class", "top1", "ece", "nll")
COLUMNS = ("variant", "kind", *FIGURES, "gain", "gain_low", "gain_high")


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


def variant_table(
    predictions: pd.DataFrame, variants: pd.DataFrame, kinds: dict[str, str], shots: Sequence[str]
) -> pd.DataFrame:
    """One row per variant: its figures, and its class-balanced accuracy minus the model's own with a paired interval.

    `variants` has a variant's columns as `predictions` has a branch's; `kinds` maps its names to ablation or robust.
    Figures of groups that do not exist are empty.
    """
    final = final_branch(predictions)
    both = predictions.join(variants.drop(columns=["index", "label"]))
    own = score_branch(predictions, final, shots)["all"]
    rows = []
    for name, kind in kinds.items():
        figures = score_branch(variants, name, shots)
        low, high = gain_intervals(both, name, final, shots)["all"]
        shown = {key: figures[key] for key in FIGURES if key in figures}
        gain = {"gain": figures["all"] - own, "gain_low": low, "gain_high": high}
        rows.append({"variant": name, "kind": kind, **shown, **gain})
    return pd.DataFrame(rows, columns=COLUMNS)


SHUFFLE_SEED = 0
DROP = "without_"

# (C, V, d) sentences and (C, V) prior -> the arguments of `Router.table`
Ablation = Callable[[Tensor, Tensor], dict[str, Any]]


def drop(dimension: str) -> Ablation:
    """The router never sees this dimension's sentences."""
    kept = [index for index, key in enumerate(DIMENSIONS) if key != dimension]
    return lambda sentences_CVd, prior_CV: {"sentences_CVd": sentences_CVd, "kept": kept}


def uniform(sentences_CVd: Tensor, prior_CV: Tensor) -> dict[str, Any]:
    """Every sentence counts alike, for every image: knowledge without routing."""
    return {"sentences_CVd": sentences_CVd, "weights_CV": torch.full_like(prior_CV, 1 / prior_CV.shape[1])}


def prior_only(sentences_CVd: Tensor, prior_CV: Tensor) -> dict[str, Any]:
    """Weights in proportion to the prior M (its cosines, negative ones as 0), the same for every image."""
    weights_CV = prior_CV.clamp_min(0) + torch.finfo(prior_CV.dtype).tiny
    return {"sentences_CVd": sentences_CVd, "weights_CV": weights_CV / weights_CV.sum(dim=1, keepdim=True)}


def shuffled(sentences_CVd: Tensor, prior_CV: Tensor) -> dict[str, Any]:
    """Every class gets the sentences of another one: what is left is not knowledge."""
    order = torch.from_numpy(np.random.default_rng(SHUFFLE_SEED).permutation(len(sentences_CVd)))
    mixed_CVd = torch.empty_like(sentences_CVd)
    mixed_CVd[order] = sentences_CVd[order.roll(1)]  # one cycle through all classes: none keeps its own
    return {"sentences_CVd": mixed_CVd}


ABLATIONS: dict[str, Ablation] = {
    **{f"{DROP}{dimension}": drop(dimension) for dimension in DIMENSIONS},
    "uniform_routing": uniform,
    "prior_only": prior_only,
    "shuffled_sentences": shuffled,
}


NAMES_ONLY = "names_only"  # the class name in the place of each of its sentences
MOST, LEAST = f"{DROP}most_weighted", f"{DROP}least_weighted"  # the deletion test: per image, of its answer's sentences
ABLATION_NAMES = (*ABLATIONS, NAMES_ONLY, MOST, LEAST)


class RoutingAblations:
    """The fused answer with each of `names`' tables in place of the model's own; the model itself is not touched.

    `prior_CV` is M of `mdpr.artifacts.Features`, `name_Cd` a unit-length text feature per class name.
    """

    kind = "ablation"

    def __init__(self, classifier: Classifier, prior_CV: np.ndarray, name_Cd: np.ndarray, names: Sequence[str]) -> None:
        self._model = classifier.model
        self._names = names
        router = self._model.router
        assert router is not None, "this model has no router"
        sentences_CVd = self._model.sentences_CVd
        prior, name = (
            torch.as_tensor(array, dtype=torch.float32, device=sentences_CVd.device) for array in (prior_CV, name_Cd)
        )
        deletion = [f"{DROP}{dimension}" for dimension in DIMENSIONS] if {MOST, LEAST} & set(names) else []
        changes = {
            key: {"sentences_CVd": name[:, None].expand_as(sentences_CVd)}
            if key == NAMES_ONLY
            else ABLATIONS[key](sentences_CVd, prior)
            for key in dict.fromkeys([*names, *deletion])
            if key not in (MOST, LEAST)
        }
        with torch.no_grad():
            self._tables = {key: router.table(**change) for key, change in changes.items()}

    def log_probabilities(self, batch: BatchOutputs) -> dict[str, Tensor]:
        """(B, C) for every ablation."""
        router = self._model.router
        assert router is not None
        scale = self._model.logit_scale
        base_BC = batch.outputs.base_BC
        found = {
            name: self._model.fusion(
                base_BC, scale * router(batch.outputs.image_Bd, table).similarity_BC, batch.expert_BC
            )
            for name, table in self._tables.items()
        }
        if {MOST, LEAST} & set(self._names):
            weights_BV = Classifier.consult(batch.outputs, batch.outputs.fused_BC.argmax(dim=-1))
            without_VBC = torch.stack([found[f"{DROP}{dimension}"] for dimension in DIMENSIONS])
            image_B = torch.arange(len(weights_BV), device=weights_BV.device)
            found[MOST] = without_VBC[weights_BV.argmax(dim=1), image_B]
            found[LEAST] = without_VBC[weights_BV.argmin(dim=1), image_B]
        return {name: found[name] for name in self._names}


TAUS = np.linspace(0, 2, 21)  # 0: no adjustment
FIVE_CROP_RESIZE = 8 / 7  # 256 to 224, as for ImageNet
LIFT_RESIZE = 1 + 24 / 224  # 248 to 224 (Shi et al., LIFT, ICML 2024)


class Flipped:
    """The mean probability of an image and its mirror image."""

    kind = "robust"
    name = "flip_ensemble"

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def log_probabilities(self, batch: BatchOutputs) -> dict[str, Tensor]:
        mirrored = self._classifier(batch.image_B3HW.flip(-1)).fused_BC
        return {self.name: mean_probability(torch.stack([batch.outputs.fused_BC, mirrored]))}


class PostHoc:
    """Logit adjustment log p - tau log pi, and w base + (1 - w) routed, with tau and w chosen on validation.

    Sources: Menon et al., ICLR 2021, equation 9 (pi: share of the training images, counts + 1).
    """

    kind = "robust"

    def __init__(self, classifier: Classifier, val_batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        count_C = torch.tensor(classifier.config.train_images, dtype=torch.float32, device=classifier.device) + 1
        self._log_share_C = (count_C / count_C.sum()).log()
        parts, labels = [], []
        for image_B3HW, label_B in val_batches:
            outputs = classifier(image_B3HW)
            parts.append((outputs.fused_BC, outputs.base_BC, outputs.routed_BC))
            labels.append(label_B)
        fused, base, routed = zip(*parts, strict=True)
        label_N, fused_NC = torch.cat(labels).numpy(), torch.cat(fused)
        adjusted = [self._adjust(fused_NC, tau) for tau in TAUS]
        self.tau = choose(TAUS, adjusted, label_N, least=0.0)
        self.base_weight: float | None = None
        if routed[0] is not None:
            base_NC, routed_NC = torch.cat(base), torch.cat([part for part in routed if part is not None])
            weighted = [weigh(base_NC, routed_NC, weight) for weight in Validated.CANDIDATES]
            self.base_weight = choose(np.array(Validated.CANDIDATES), weighted, label_N, least=0.5)

    def log_probabilities(self, batch: BatchOutputs) -> dict[str, Tensor]:
        outputs = batch.outputs
        answers = {f"logit_adjusted (tau {self.tau:.1f})": self._adjust(outputs.fused_BC, self.tau)}
        if self.base_weight is not None and outputs.routed_BC is not None:
            name = f"fusion_weight (base {self.base_weight:.2f})"
            answers[name] = weigh(outputs.base_BC, outputs.routed_BC, self.base_weight)
        return answers

    def _adjust(self, log_probability_NC: Tensor, tau: float) -> Tensor:
        return F.log_softmax(log_probability_NC - tau * self._log_share_C, dim=-1)


def choose(values: np.ndarray, answers: Sequence[Tensor], label_N: np.ndarray, least: float) -> float:
    """The value whose answers (N, C) are best in class-balanced accuracy; of the best, the nearest to `least`."""
    accuracy = [np.nanmean(class_recall(label_N, it.argmax(1).cpu().numpy(), it.shape[1])) for it in answers]
    best = values[np.isclose(accuracy, np.max(accuracy), rtol=0, atol=1e-12)]
    return float(best[np.abs(best - least).argmin()])


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
    mean, std = torch.tensor(classifier.image_mean), torch.tensor(classifier.image_std)
    return ImageTransform(fixed, None, mean, std)


def _crops(image: Image.Image, size_px: int, larger_px: int, flips: bool) -> Tensor:
    larger = vision.resize(image, [larger_px], interpolation=InterpolationMode.BICUBIC)
    crops = torch.stack([vision.pil_to_tensor(crop) for crop in vision.five_crop(larger, [size_px])])
    return torch.cat([crops, crops.flip(-1)]) if flips else crops
