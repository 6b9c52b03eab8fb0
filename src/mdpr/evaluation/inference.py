"""One pass over the test set: every branch of the tuned model, the frozen model's zero-shot answer, and variants.

Shapes: B images in a batch, C classes, d joint width, W views of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.artifacts import Probe
from mdpr.evaluation.calibration import ClasswiseCalibration
from mdpr.evaluation.predictions import PredictionRecorder
from mdpr.evaluation.robust import mean_probability
from mdpr.evaluation.variants import Seen, Variant
from mdpr.inference import Classifier
from mdpr.model.fusion import GeneralizedLogitAdjustment


@dataclass(frozen=True)
class Passed:
    """What one pass gives.

    predictions     the table of `mdpr.evaluation.predictions`
    classwise_ece   of every recorded branch
    variants        a variant's columns as predictions has a branch's; None without variants
    kinds           variant -> ablation or robust, in order
    """

    predictions: pd.DataFrame
    classwise_ece: Mapping[str, float]
    variants: pd.DataFrame | None
    kinds: dict[str, str]


@torch.inference_mode()
def predict(
    classifier: Classifier,
    probe: Probe,
    batches: Iterable[tuple[Tensor, Tensor]],
    variants: Sequence[Variant] = (),
) -> Passed:
    """Answers to `batches` of images (B, 3, H, W) and labels (B,), in order.

    Zero-shot is s * x t^T with the frozen tower's image features x and the template ensemble t of `probe`. Raises
    `ArtifactError` where scores are not finite.
    """
    text_Cd = torch.as_tensor(probe.text_Cd, dtype=torch.float32, device=classifier.device)
    recorder, others = PredictionRecorder(), PredictionRecorder()
    calibration: dict[str, ClasswiseCalibration] = {}
    kinds: dict[str, str] = {}
    fusion = classifier.model.fusion
    for image_B3HW, label_B in batches:
        image_on_device = image_B3HW.to(classifier.device)
        frozen_Bd = classifier.backbone.encode_image(image_on_device).float()
        outputs = classifier(image_on_device)
        logits = {"zero_shot": probe.logit_scale * frozen_Bd @ text_Cd.T, "base": outputs.base_BC}
        routing_BV = None
        if outputs.routed_BC is not None:
            logits |= {"routed": outputs.routed_BC, "fused": outputs.fused_BC}
            routing_BV = classifier.consult(outputs, outputs.fused_BC.argmax(dim=-1))
        scores = {branch: F.log_softmax(logits_BC.float(), dim=-1) for branch, logits_BC in logits.items()}
        recorder.add(label_B, scores, routing_BV)
        for branch, scores_BC in scores.items():
            calibration.setdefault(branch, ClasswiseCalibration()).add(label_B, scores_BC)
        expert_BC = None
        if isinstance(fusion, GeneralizedLogitAdjustment):
            expert_BC = fusion.expert(frozen_Bd, classifier.backbone.logit_scale)
        answers: dict[str, Tensor] = {}
        for variant in variants:
            given = variant.log_probabilities(Seen(image_on_device, outputs, expert_BC))
            answers |= given
            kinds |= dict.fromkeys(given, variant.kind)
        if answers:
            others.add(label_B, answers)
    return Passed(
        recorder.table(),
        {branch: counts.error() for branch, counts in calibration.items()},
        others.table() if kinds else None,
        kinds,
    )


@torch.inference_mode()
def predict_views(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], name: str) -> pd.DataFrame:
    """The mean probability over the views (B, W, 3, H, W) of every image, as the variant `name`."""
    recorder = PredictionRecorder()
    for views_BW3HW, label_B in batches:
        answers = [classifier(view_B3HW).fused_BC for view_B3HW in views_BW3HW.unbind(dim=1)]
        recorder.add(label_B, {name: mean_probability(torch.stack(answers))})
    return recorder.table()
