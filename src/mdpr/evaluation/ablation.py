"""Routing taken apart without training again: the same learned weights with other sentences in the router's table.

The router is linear in its values, so weights that do not depend on the image are one sentence a class: the mean of
the class's sentences under those weights. Every ablation below is therefore a change of the sentence features alone,
and costs one pass of the router, not one of the image tower.

Shapes: B images in a batch, C classes, V dimensions, d joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mdpr.config import DIMENSIONS
from mdpr.evaluation.variants import Seen
from mdpr.inference import Classifier

SHUFFLE_SEED = 0
DROP = "without_"

Ablation = Callable[[Tensor, Tensor], Tensor]  # (C, V, d) sentences and (C, V) prior -> (C, V', d)


def drop(dimension: str) -> Ablation:
    """The router never sees this dimension's sentences."""
    kept = [index for index, key in enumerate(DIMENSIONS) if key != dimension]
    return lambda sentences_CVd, prior_CV: sentences_CVd[:, kept]


def uniform(sentences_CVd: Tensor, prior_CV: Tensor) -> Tensor:
    """Every sentence counts alike, for every image: knowledge without routing."""
    return sentences_CVd.mean(dim=1, keepdim=True)


def prior_only(sentences_CVd: Tensor, prior_CV: Tensor) -> Tensor:
    """Weights in proportion to the prior M (its cosines, negative ones as 0), the same for every image."""
    weight_CV = prior_CV.clamp_min(0) + torch.finfo(prior_CV.dtype).tiny
    weight_CV = weight_CV / weight_CV.sum(dim=1, keepdim=True)
    return (weight_CV[:, :, None] * sentences_CVd).sum(dim=1, keepdim=True)


def shuffled(sentences_CVd: Tensor, prior_CV: Tensor) -> Tensor:
    """Every class gets the sentences of another one: what is left is not knowledge."""
    order = torch.from_numpy(np.random.default_rng(SHUFFLE_SEED).permutation(len(sentences_CVd)))
    mixed_CVd = torch.empty_like(sentences_CVd)
    mixed_CVd[order] = sentences_CVd[order.roll(1)]  # one cycle through all classes: none keeps its own
    return mixed_CVd


ABLATIONS: dict[str, Ablation] = {
    **{f"{DROP}{dimension}": drop(dimension) for dimension in DIMENSIONS},
    "uniform_routing": uniform,
    "prior_only": prior_only,
    "shuffled_sentences": shuffled,
}


class RoutingAblations:
    """The fused answer with each of `names`' tables in place of the model's own; the model itself is not touched.

    `prior_CV` is M of `mdpr.artifacts.Features`.
    """

    kind = "ablation"

    def __init__(self, classifier: Classifier, prior_CV: np.ndarray, names: Sequence[str]) -> None:
        self._model = classifier.model
        router = self._model.router
        assert router is not None, "this model has no router"
        sentences_CVd = self._model.sentences_CVd
        prior = torch.as_tensor(prior_CV, dtype=torch.float32, device=sentences_CVd.device)
        with torch.no_grad():
            self._tables = {name: router.table(ABLATIONS[name](sentences_CVd, prior)) for name in names}

    def log_probabilities(self, seen: Seen) -> dict[str, Tensor]:
        """(B, C) for every ablation."""
        router = self._model.router
        assert router is not None
        scale = self._model.backbone.logit_scale
        base_BC = seen.outputs.base_BC
        return {
            name: self._model.fusion(base_BC, scale * router(seen.outputs.image_Bd, table).cosine_BC, seen.expert_BC)
            for name, table in self._tables.items()
        }
