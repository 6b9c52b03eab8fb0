"""One pass over the test set: every branch of the tuned model, and the frozen model's zero-shot answer.

Shapes: B images in a batch, C classes, d joint width.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.artifacts import Probe
from mdpr.evaluation.predictions import PredictionRecorder
from mdpr.inference import Classifier


@torch.inference_mode()
def predict(classifier: Classifier, probe: Probe, batches: Iterable[tuple[Tensor, Tensor]]) -> pd.DataFrame:
    """The table of `mdpr.evaluation.predictions` for `batches` of images (B, 3, H, W) and labels (B,), in order.

    Zero-shot is s * x t^T with the frozen tower's image features x and the template ensemble t of `probe`.
    """
    text_Cd = torch.as_tensor(probe.text_Cd, dtype=torch.float32, device=classifier.device)
    recorder = PredictionRecorder()
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
    return recorder.table()
