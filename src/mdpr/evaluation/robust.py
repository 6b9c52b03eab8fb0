"""Options that cost more time or a look at the validation set: reported as rows of their own.

What is chosen is chosen on the validation images, by class-balanced accuracy; of equal choices the one that changes
the model least. The test set chooses nothing.

Shapes: N validation images, B images in a batch, C classes, W views of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mdpr.data.loading import ImageTransform
from mdpr.evaluation.metrics import class_recall
from mdpr.evaluation.variants import Seen
from mdpr.inference import Classifier

if TYPE_CHECKING:
    from PIL import Image

TAUS = np.linspace(0, 2, 21)  # 0: no adjustment
BASE_WEIGHTS = np.linspace(0, 1, 21)  # 1/2: the paper's mean
FIVE_CROP_RESIZE = 8 / 7  # 256 to 224, as for ImageNet


class Flipped:
    """The mean probability of an image and its mirror image."""

    kind = "robust"
    name = "flip_ensemble"

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def log_probabilities(self, seen: Seen) -> dict[str, Tensor]:
        mirrored = self._classifier(seen.image_B3HW.flip(-1)).fused_BC
        return {self.name: mean_probability(torch.stack([seen.outputs.fused_BC, mirrored]))}


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
            weighted = [weigh(base_NC, routed_NC, weight) for weight in BASE_WEIGHTS]
            self.base_weight = choose(BASE_WEIGHTS, weighted, label_N, least=0.5)

    def log_probabilities(self, seen: Seen) -> dict[str, Tensor]:
        outputs = seen.outputs
        answers = {f"logit_adjusted (tau {self.tau:.1f})": self._adjust(outputs.fused_BC, self.tau)}
        if self.base_weight is not None and outputs.routed_BC is not None:
            name = f"fusion_weight (base {self.base_weight:.2f})"
            answers[name] = weigh(outputs.base_BC, outputs.routed_BC, self.base_weight)
        return answers

    def _adjust(self, log_probability_NC: Tensor, tau: float) -> Tensor:
        return F.log_softmax(log_probability_NC - tau * self._log_share_C, dim=-1)


def weigh(base_BC: Tensor, routed_BC: Tensor, base_weight: float) -> Tensor:
    """softmax(w base + (1 - w) routed), as log-probabilities."""
    return F.log_softmax(base_weight * base_BC + (1 - base_weight) * routed_BC, dim=-1)


def choose(values: np.ndarray, answers: Sequence[Tensor], label_N: np.ndarray, least: float) -> float:
    """The value whose answers (N, C) are best in class-balanced accuracy; of the best, the nearest to `least`."""
    accuracy = [np.nanmean(class_recall(label_N, it.argmax(1).cpu().numpy(), it.shape[1])) for it in answers]
    best = values[np.isclose(accuracy, np.max(accuracy), rtol=0, atol=1e-12)]
    return float(best[np.abs(best - least).argmin()])


def mean_probability(log_probability_WBC: Tensor) -> Tensor:
    """The mean of W probability vectors, as log-probabilities (B, C)."""
    return log_probability_WBC.logsumexp(dim=0) - np.log(len(log_probability_WBC))


def five_crop_transform(classifier: Classifier, flips: bool) -> ImageTransform:
    """Corners and centre of a somewhat larger picture, (W, 3, H, W) with W = 5, or 10 with their mirror images."""
    fixed = partial(_crops, size_px=classifier.image_size_px, flips=flips)
    mean, std = torch.tensor(classifier.image_mean), torch.tensor(classifier.image_std)
    return ImageTransform(fixed, None, mean, std)


def _crops(image: Image.Image, size_px: int, flips: bool) -> Tensor:
    larger = vision.resize(image, [round(size_px * FIVE_CROP_RESIZE)], interpolation=InterpolationMode.BICUBIC)
    crops = torch.stack([vision.pil_to_tensor(crop) for crop in vision.five_crop(larger, [size_px])])
    return torch.cat([crops, crops.flip(-1)]) if flips else crops
