"""The passes over images of an evaluation: validation to choose on, test to score, test again for other views.

Shapes: B images in a batch, C classes, d joint width, W views of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.artifacts import ImageFile, LinearHead, PictureSizes, Probe, Split, image_digests, read_split
from mdpr.errors import ConfigError
from mdpr.evaluation.ablations import (
    ABLATION_NAMES,
    VIEWS,
    BatchOutputs,
    Flipped,
    PostHoc,
    RoutingAblations,
    Variant,
    Views,
    five_crop_transform,
)
from mdpr.evaluation.metrics import ClasswiseCalibration
from mdpr.evaluation.predictions import PredictionRecorder, Predictions, top_classes
from mdpr.images.decoding import short_side_px
from mdpr.images.loading import ImageTable, ImageTransform, make_loader, scoring_batch_size
from mdpr.model.classifier import Outputs
from mdpr.model.fusion import GeneralizedLogitAdjustment
from mdpr.model.inference import Classifier
from mdpr.params import EvaluateParams
from mdpr.progress import track

MEASURED_PICTURES = 500

Recorder = Callable[[Tensor, Outputs], None]  # labels (B,) and outputs of a batch


def predict(
    classifier: Classifier,
    probe: Probe,
    batches: Iterable[tuple[Tensor, Tensor]],
    variants: Sequence[Variant],
    record: Recorder | None,
    baselines: Mapping[str, LinearHead],
) -> Predictions:
    """Answers to `batches` of images (B, 3, H, W) and labels (B,), in order; `record` is given each batch's outputs.

    `baselines` are classifiers on the frozen features x; of each only the best class is recorded.
    Zero-shot is s * x t^T with the frozen tower's image features x and the template ensemble t of `probe`. Raises
    `ArtifactError` where scores are not finite.
    """

    def on_device(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=classifier.device)

    text_Cd = on_device(probe.text_Cd)
    heads = [(name, on_device(head.weight_Cd), on_device(head.bias_C)) for name, head in baselines.items()]
    recorder, others = PredictionRecorder(), PredictionRecorder()
    calibration: dict[str, ClasswiseCalibration] = {}
    kinds: dict[str, str] = {}
    fusion = classifier.model.fusion

    def add(image_B3HW: Tensor, label_B: Tensor) -> None:  # a function: nothing of a batch is held while the next runs
        image_on_device = image_B3HW.to(classifier.device)
        frozen_Bd = classifier.backbone.encode_image(image_on_device).float()
        outputs = classifier(image_on_device)
        if record is not None:
            record(label_B, outputs)
        logits = {"zero_shot": probe.logit_scale * frozen_Bd @ text_Cd.T, "base": outputs.base_BC}
        columns: dict[str, Tensor] = {}
        if outputs.routed_BC is not None:
            logits["routed"] = outputs.routed_BC
            columns["routing"] = classifier.consult(outputs, outputs.fused_BC.argmax(dim=-1))
            columns["true_routing"] = classifier.consult(outputs, label_B.to(classifier.device))
        if not classifier.model.answers_as_base:
            logits["fused"] = outputs.fused_BC
        index_B = recorder.images + torch.arange(len(label_B))
        for name, weight_Cd, bias_C in heads:
            columns[f"{name}_top1"] = top_classes((frozen_Bd @ weight_Cd.T + bias_C).cpu(), 1, index_B)[:, 0]
        scores = {branch: F.log_softmax(logits_BC.float(), dim=-1) for branch, logits_BC in logits.items()}
        recorder.add(label_B, scores, columns)
        for branch, scores_BC in scores.items():
            calibration.setdefault(branch, ClasswiseCalibration()).add(label_B, scores_BC)
        expert_BC = None
        if isinstance(fusion, GeneralizedLogitAdjustment):
            expert_BC = fusion.expert(frozen_Bd, classifier.backbone.logit_scale)
        answers: dict[str, Tensor] = {}
        for variant in variants:
            given = variant.log_probabilities(BatchOutputs(image_on_device, outputs, expert_BC))
            answers |= given
            kinds.update(dict.fromkeys(given, variant.kind))
        others.add(label_B, answers)

    for batch in batches:
        add(*batch)
    classwise_ece = {branch: counts.error() for branch, counts in calibration.items()}
    return Predictions(recorder.table(), classwise_ece, others.table(), kinds)


def predict_views(
    classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], views: Views, name: str
) -> pd.DataFrame:
    """The mean answer over the views (B, W, 3, H, W) of every image, as the variant `name`."""
    recorder = PredictionRecorder()
    for views_BW3HW, label_B in batches:
        answers = [classifier(view_B3HW).fused_BC for view_B3HW in views_BW3HW.unbind(dim=1)]
        recorder.add(label_B, {name: views.mean(torch.stack(answers))})
    return recorder.table()


@torch.inference_mode()
def evaluate_splits(
    classifier: Classifier,
    probe: Probe,
    prior_CV: np.ndarray | None,
    prepared: Path,
    params: EvaluateParams,
    record: Recorder | None = None,
    baselines: Mapping[str, LinearHead] | None = None,
) -> Predictions:
    """Answers to prepared/test.parquet with the variants that `params` names.

    `prior_CV` is M of `mdpr.artifacts.Features`. Raises `ConfigError` where ablations are listed for a model without
    a router.
    """
    batch_size = scoring_batch_size(params.batch_size, len(classifier.class_names))
    variants: list[Variant] = []
    if names := ablation_names(params, routed=classifier.model.router is not None):
        assert prior_CV is not None
        variants.append(RoutingAblations(classifier, prior_CV, probe.text_Cd, names))
    if params.post_hoc:
        val = make_loader(_table(prepared, "val", classifier.transform), batch_size)
        variants.append(PostHoc(classifier, track(val, "choose on validation")))
    if params.test_time == "flip":
        variants.append(Flipped(classifier))
    test = make_loader(_table(prepared, "test", classifier.transform), batch_size)
    predicted = predict(classifier, probe, track(test, "evaluate"), variants, record, baselines or {})
    if views := VIEWS.get(params.test_time):
        loader = make_loader(_table(prepared, "test", five_crop_transform(classifier, views)), batch_size)
        name = f"{params.test_time}_ensemble"
        table = predict_views(classifier, track(loader, params.test_time), views, name)
        joined = predicted.variants.join(table.drop(columns=["index", "label"]))
        predicted = replace(predicted, variants=joined, kinds=predicted.kinds | {name: "robust"})
    image_N = image_digests(read_split(prepared, "test"))
    return replace(predicted, predictions=predicted.predictions.assign(image=image_N))


def measure_pictures(images: ImageFile, input_px: int) -> PictureSizes:
    """How large pictures are beside the backbone's input, from at most `MEASURED_PICTURES` spread over the split."""
    rows = range(0, len(images), -(-len(images) // MEASURED_PICTURES))
    sides_px = [short_side_px(images.image(row)) for row in rows]
    return PictureSizes(short_side_px=float(np.median(sides_px)), input_px=input_px)


@torch.inference_mode()
def score_images(classifier: Classifier, images: ImageFile, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The final answer to each image, whatever its label: class (N,) int64 and probability (N,) float32."""
    batch_size = scoring_batch_size(batch_size, len(classifier.class_names))
    loader = make_loader(ImageTable(images, classifier.transform, cache_max_bytes=0), batch_size)
    top1: list[Tensor] = []
    probability: list[Tensor] = []
    for image_B3HW, _ in track(loader, "score the champion"):
        scores_BC = F.log_softmax(classifier(image_B3HW).fused_BC.float(), dim=-1).cpu()
        start = sum(map(len, top1))
        best_B1 = top_classes(scores_BC, 1, torch.arange(start, start + len(scores_BC)))
        top1.append(best_B1[:, 0])
        probability.append(scores_BC.gather(1, best_B1)[:, 0].exp())
    return torch.cat(top1).numpy(), torch.cat(probability).numpy()


def ablation_names(params: EvaluateParams, routed: bool) -> Sequence[str]:
    """The ablations to make, none for a model without a router."""
    if isinstance(params.ablations, bool):
        return list(ABLATION_NAMES) if params.ablations and routed else []
    if params.ablations and not routed:
        raise ConfigError("evaluate.ablations names ablations of routing, the model has no router: set it to false")
    return params.ablations


def _table(prepared: Path, split: Split, transform: ImageTransform) -> ImageTable:
    return ImageTable(read_split(prepared, split), transform, cache_max_bytes=0)
