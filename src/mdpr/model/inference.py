"""Using a tuned model: one public class, for a single image, a batch, evaluation and serving alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mdpr.artifacts import ModelConfig, read_features, read_model_config
from mdpr.errors import ArtifactError
from mdpr.images.loading import eval_transform
from mdpr.model.backbone import Backbone, load_weights
from mdpr.model.classifier import MDPR, Outputs
from mdpr.params import DIMENSIONS, BackboneParams

if TYPE_CHECKING:
    from PIL import Image

# Seconds of time.monotonic() after which `Classifier.predict` stops between two batches: nobody waits for it any more.
DEADLINE: ContextVar[float] = ContextVar("DEADLINE", default=float("inf"))


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: fused probability, the k best classes, and what was consulted for the best one.

    routing    dimension -> weight (they sum to 1), or None where the model has no router
    """

    class_index: int
    class_name: str
    probability: float
    top_k: tuple[tuple[str, float], ...]
    routing: dict[str, float] | None


class Classifier:
    """A tuned model ready for use, its class features and router table computed once.

    >>> classifier = Classifier.load(Path("data/model"), Path("data/features"))
    >>> classifier.predict([Image.open("shoe.png")])[0].class_name
    """

    def __init__(self, model: MDPR, config: ModelConfig) -> None:
        self.model = model.eval()
        self.config = config
        self.class_names = config.class_names
        self.backbone = model.backbone
        self.device = model.backbone.device
        self.image_size_px = model.backbone.image_size_px
        self.image_mean = model.backbone.image_mean
        self.image_std = model.backbone.image_std
        self.transform = eval_transform(self.image_size_px, self.image_mean, self.image_std)
        with torch.no_grad():
            self.constants = model.constants()

    @classmethod
    def load(cls, model: Path, features: Path, backbone: BackboneParams | None = None) -> Classifier:
        """Open the folders `model/` and `features/`; `backbone` overrides where the frozen model is found.

        Raises `ArtifactError` where the pieces do not belong together and `BackboneError` where the frozen model
        is not there.
        """
        config = read_model_config(model)
        frozen = Backbone.load(backbone or config.backbone)
        frozen.check_fingerprint(model, config.fingerprint)
        encoded = read_features(features, config.class_names) if config.tune.routing else None
        if encoded is not None and encoded.knowledge_digest != config.knowledge_digest:
            raise ArtifactError(f"{model} was tuned with another knowledge base than {features} holds: rerun tune")
        tuned = MDPR(frozen, config.class_names, config.tune, encoded)
        tuned.load_learned_state(load_weights(model / "model.safetensors"))
        return cls(tuned, config)

    @torch.inference_mode()
    def __call__(self, image_B3HW: Tensor) -> Outputs:
        """Logits of every branch for a batch of transformed images."""
        return self.model(image_B3HW.to(self.device), constants=self.constants)

    @staticmethod
    def consult(outputs: Outputs, class_B: Tensor) -> Tensor:
        """Routing weights (B, V) for one class an image: which dimension the image consulted for it."""
        assert outputs.weights_BCV is not None, "this model has no router"
        return outputs.weights_BCV[torch.arange(len(class_B), device=class_B.device), class_B]

    def predict(self, images: Sequence[Image.Image | Tensor], top_k: int = 5, batch_size: int = 64) -> list[Prediction]:
        """Fused predictions, in order, for decoded pictures or what `transform` made of them (3, H, W).

        Raises `TimeoutError` between two batches once `DEADLINE` has passed.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            if time.monotonic() > DEADLINE.get():
                raise TimeoutError
            batch = [self._as_tensor(image) for image in images[start : start + batch_size]]
            outputs = self(torch.stack(batch))
            probability_BC = outputs.fused_BC.exp()
            best = probability_BC.topk(min(top_k, len(self.class_names)), dim=-1)
            routing = None if outputs.weights_BCV is None else self.consult(outputs, best.indices[:, 0])
            for row in range(len(batch)):
                predictions.append(self._prediction(best.values[row], best.indices[row], routing, row))
        return predictions

    def _as_tensor(self, image: Image.Image | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else self.transform(image.convert("RGB"))

    def _prediction(self, values_k: Tensor, indices_k: Tensor, routing_BV: Tensor | None, row: int) -> Prediction:
        pairs = zip(indices_k.tolist(), values_k.tolist(), strict=True)
        top = tuple((self.class_names[index], value) for index, value in pairs)
        weights = None if routing_BV is None else dict(zip(DIMENSIONS, routing_BV[row].tolist(), strict=True))
        return Prediction(int(indices_k[0]), top[0][0], top[0][1], top, weights)
