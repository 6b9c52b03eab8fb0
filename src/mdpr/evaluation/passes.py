"""The passes over images that an evaluation takes: validation to choose on, test to score, test again for views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mdpr.artifacts import Probe, read_images
from mdpr.config import EvaluateParams
from mdpr.data.loading import ImageTable, ImageTransform, eval_transform, make_loader
from mdpr.errors import ConfigError
from mdpr.evaluation.ablation import ABLATIONS, RoutingAblations
from mdpr.evaluation.inference import Passed, predict, predict_views
from mdpr.evaluation.robust import Flipped, PostHoc, five_crop_transform
from mdpr.evaluation.variants import Variant
from mdpr.inference import Classifier
from mdpr.progress import track


def evaluate_splits(
    classifier: Classifier, probe: Probe, prior_CV: np.ndarray | None, prepared: Path, params: EvaluateParams
) -> Passed:
    """Answers to prepared/test.parquet with the variants that `params` names.

    `prior_CV` is M of `mdpr.artifacts.Features`. Raises `ConfigError` where ablations are listed for a model without
    a router.
    """
    look = eval_transform(classifier.image_size_px, classifier.image_mean, classifier.image_std)
    variants: list[Variant] = []
    if names := ablation_names(params, routed=classifier.model.router is not None):
        assert prior_CV is not None
        variants.append(RoutingAblations(classifier, prior_CV, names))
    if params.post_hoc:
        variants.append(_post_hoc(classifier, _table(prepared, "val", look), params.batch_size))
    if params.test_time == "flip":
        variants.append(Flipped(classifier))
    test = make_loader(_table(prepared, "test", look), params.batch_size)
    passed = predict(classifier, probe, track(test, "evaluate"), variants)
    if params.test_time.startswith("five_crop"):
        views = five_crop_transform(classifier, flips=params.test_time == "five_crop_flip")
        loader = make_loader(_table(prepared, "test", views), params.batch_size)
        name = f"{params.test_time}_ensemble"
        table = predict_views(classifier, track(loader, params.test_time), name)
        if passed.variants is not None:
            table = passed.variants.join(table.drop(columns=["index", "label"]))
        passed = replace(passed, variants=table, kinds=passed.kinds | {name: "robust"})
    return passed


def ablation_names(params: EvaluateParams, routed: bool) -> Sequence[str]:
    """The ablations to make, none for a model without a router."""
    if isinstance(params.ablations, bool):
        return list(ABLATIONS) if params.ablations and routed else []
    if params.ablations and not routed:
        raise ConfigError("evaluate.ablations names ablations of routing, the model has no router: set it to false")
    return params.ablations


@torch.inference_mode()
def _post_hoc(classifier: Classifier, val: ImageTable, batch_size: int) -> PostHoc:
    return PostHoc(classifier, track(make_loader(val, batch_size), "choose on validation"))


def _table(prepared: Path, split: str, look: ImageTransform) -> ImageTable:
    return ImageTable(read_images(prepared / f"{split}.parquet"), look, cache_max_bytes=0)
