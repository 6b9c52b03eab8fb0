"""Using a tuned model: one public class, for a single image, a batch, evaluation and serving alike.

Shapes: B images, C classes, V dimensions, k best classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mdpr.artifacts import ModelConfig, read_features, read_model_config, tuned_digest
from mdpr.errors import ArtifactError, ConfigError, TrackingError, one_line
from mdpr.images.decoding import decode_image, read_file, to_rgb
from mdpr.images.loading import eval_transform
from mdpr.model.backbone import Backbone, load_weights
from mdpr.model.classifier import MDPR, Outputs
from mdpr.params import DIMENSIONS, BackboneParams, read_json, read_yaml

ImageLike = str | Path | bytes | Image.Image | Tensor

# Seconds of time.monotonic() after which `Classifier.predict` stops between two batches: nobody waits for it any more.
DEADLINE: ContextVar[float] = ContextVar("DEADLINE", default=float("inf"))

UNIFORM = "uniform"
SUM_TOLERANCE = 0.01  # shares that people write are rounded
BALANCED_LOSSES = ("balanced_softmax", "class_balanced")
FORM = '{"class": share, ...}, or a monitor.json'


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: fused probability, the k best classes, and the routing weights of the best one.

    routing    dimension -> weight, or None if the model has no router; 1 / V each means no preference
    """

    class_index: int
    class_name: str
    probability: float
    top_k: tuple[tuple[str, float], ...]
    routing: dict[str, float] | None


class Classifier:
    """A tuned model ready for use, its class features and router table computed once.

    prior     class shares to expect where the model is used; None: as in tuning
    record    is given the outputs and the answers' class indices (B,) of every batch that `predict` answers
    digest    of the learned weights and their configuration

    >>> classifier = Classifier.load("models:/mdpr@champion")
    >>> classifier.predict("shoe.png")[0].class_name
    """

    def __init__(self, model: MDPR, config: ModelConfig, digest: str = "") -> None:
        self.model = model.eval()
        self.model.adjust_by(config.tau, config.train_images)
        self.config = config
        self.digest = digest
        self.prior: DeploymentPrior | None = None
        self.record: Callable[[Outputs, Tensor], None] | None = None
        self.class_names = config.class_names
        self.backbone = model.backbone
        self.device = model.backbone.device
        self.image_size_px = model.backbone.image_size_px
        self.transform = eval_transform(self.image_size_px, model.backbone.image_mean, model.backbone.image_std)
        with torch.no_grad():
            self.constants = model.constants()

    @classmethod
    def load(
        cls, model: str | Path, features: str | Path | None = None, backbone: BackboneParams | None = None
    ) -> Classifier:
        """Open a tuned model: the folder that tune wrote, a model of MLflow's, or its address in the registry.

        model       data/model, models:/mdpr@champion, models:/mdpr/3, or a folder that holds an MLmodel file
        features    the folder that encode wrote; by default `features` beside the folder `model`
        backbone    overrides which frozen model is used and on which device

        Raises `ArtifactError` if the pieces do not belong together, `BackboneError` if the frozen model is not there,
        `TrackingError` if the registry does not have the model.
        """
        with _opened(model, features, backbone) as (folder, beside, chosen):
            config = read_model_config(folder)
            frozen = Backbone.load(chosen or config.backbone)
            frozen.check_fingerprint(folder, config.fingerprint)
            encoded = read_features(beside, config.class_names) if config.tune.routing else None
            if encoded is not None and encoded.knowledge_digest != config.knowledge_digest:
                raise ArtifactError(f"{folder} was tuned with another knowledge base than {beside} holds: rerun tune")
            tuned = MDPR(frozen, config.class_names, config.tune, encoded, saved=True)
            weights = folder / "model.safetensors"
            tuned.load_learned_state(load_weights(weights), weights)
            return cls(tuned, config, tuned_digest(folder))

    @torch.inference_mode()
    def __call__(self, image_B3HW: Tensor) -> Outputs:
        """Logits of every branch for a batch of transformed images."""
        return self.model(image_B3HW.to(self.device), constants=self.constants)

    @staticmethod
    def consult(outputs: Outputs, class_B: Tensor) -> Tensor:
        """Routing weights (B, V) for one class per image: which dimension the image consulted for it."""
        assert outputs.weights_BCV is not None, "this model has no router"
        return outputs.weights_BCV[torch.arange(len(class_B), device=class_B.device), class_B]

    def predict(
        self, images: ImageLike | Sequence[ImageLike], top_k: int = 5, batch_size: int = 64
    ) -> list[Prediction]:
        """Fused predictions, in order, for one image or many.

        An image is a path, the bytes of a file, a Pillow picture, or what `transform` made of one (3, H, W). All but
        the last are decoded as training decodes them (EXIF orientation, 16 bit, transparency).
        Raises `DataError` for an image that cannot be read, and `TimeoutError` between two batches once `DEADLINE` has
        passed.
        """
        many = [images] if isinstance(images, ImageLike) else images
        predictions: list[Prediction] = []
        for start in range(0, len(many), batch_size):
            if time.monotonic() > DEADLINE.get():
                raise TimeoutError
            batch = [self.preprocess(image) for image in many[start : start + batch_size]]
            outputs = self(torch.stack(batch))
            scores_BC = self.prior.adjust(outputs.fused_BC) if self.prior else outputs.fused_BC
            best = scores_BC.exp().topk(min(top_k, len(self.class_names)), dim=-1)
            if self.record is not None:
                self.record(outputs, best.indices[:, 0])
            routing = None if outputs.weights_BCV is None else self.consult(outputs, best.indices[:, 0])
            for row, (values, indices) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                top = tuple(zip((self.class_names[index] for index in indices), values, strict=True))
                weights = None if routing is None else dict(zip(DIMENSIONS, routing[row].tolist(), strict=True))
                predictions.append(Prediction(indices[0], *top[0], top, weights))
        return predictions

    def preprocess(self, image: ImageLike) -> Tensor:
        """One image as the model takes it: float32 (3, H, W). Raises `DataError` if it cannot be read."""
        if isinstance(image, Tensor):
            return image
        if isinstance(image, str | Path):
            data = read_file(Path(image), str(image))
            return self.transform(decode_image(data, str(image), self.config.background))
        if isinstance(image, bytes):
            return self.transform(decode_image(image, "the image", self.config.background))
        return self.transform(to_rgb(image, self.config.background))


@contextmanager
def _opened(
    model: str | Path, features: str | Path | None, backbone: BackboneParams | None
) -> Iterator[tuple[Path, Path, BackboneParams | None]]:
    """The folders of the model and of its features, and the backbone if it comes with them, until they are loaded."""
    if str(model).startswith("models:/"):
        with TemporaryDirectory(prefix="mdpr-") as scratch:
            downloaded = _download(str(model), scratch)
            with _opened(downloaded, None, backbone) as opened:
                yield opened
        return
    folder = Path(model)
    if not folder.is_dir():
        raise ArtifactError(f"{model} is not a folder: name one that tune wrote, or an address like models:/NAME@ALIAS")
    if (folder / "MLmodel").is_file():
        parts = _parts(folder)
        shipped: dict[str, Any] = {key: str(parts[key]) for key in ("architecture", "weights") if key in parts}
        if backbone is None and shipped:
            backbone = read_model_config(parts["model"]).backbone.model_copy(update={**shipped, "device": "auto"})
        yield parts["model"], parts["features"], backbone
        return
    yield folder, Path(features) if features else folder.with_name("features"), backbone


def read_served_config(model: str) -> ModelConfig:
    """The configuration of a model of MLflow's, by its folder or its address in the registry.

    Raises `ArtifactError` or `TrackingError`.
    """
    if not model.startswith("models:/"):
        return read_model_config(_parts(Path(model))["model"])
    with TemporaryDirectory(prefix="mdpr-") as scratch:
        return read_model_config(Path(_download(f"{model}/artifacts/model/config.json", scratch)).parent)


def _parts(folder: Path) -> dict[str, Path]:
    """The artifacts of a model of MLflow's, as its file MLmodel names them."""
    flavors = read_yaml(folder / "MLmodel").get("flavors", {})
    named = flavors.get("python_function", {}).get("artifacts") or {}
    if missing := [part for part in ("model", "features") if part not in named]:
        raise ArtifactError(f"{folder} is not a model of mdpr: MLmodel names no artifact {missing[0]}")
    return {name: folder / item["path"] for name, item in named.items()}


def _download(address: str, scratch: str) -> str:
    """The model at an address of the registry, in a folder below `scratch`."""
    import mlflow

    try:
        return str(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=scratch))
    except mlflow.MlflowException as error:
        hint = "mdpr registry list shows the versions, and why one was not promoted"
        raise TrackingError(f"{address}: {one_line(error)[:300].rstrip('.')} ({hint})") from None


@dataclass(frozen=True)
class DeploymentPrior:
    """Class shares to expect where a model is used, and the exact change of its answers.

    By Bayes' rule, probabilities under one prior become those under another by adding log(prior_deploy /
    prior_reference) to the logits. prior_reference is the prior that the model's own answers assume: as `mdpr monitor`
    measured it, or else what its loss makes of the training images (`assumed_prior`).
    Source: Saerens, Latinne and Decaestecker, Neural Computation 14, 2002, equation 2.4.

    name          `uniform`, or the file that the prior comes from
    log_ratio_C   log(prior_deploy / prior_reference)
    """

    name: str
    log_ratio_C: Tensor

    def adjust(self, log_probability_BC: Tensor) -> Tensor:
        """Log-probabilities under the deployment prior."""
        return F.log_softmax(log_probability_BC + self.log_ratio_C.to(log_probability_BC), dim=-1)

    def __str__(self) -> str:
        low, high = self.log_ratio_C.exp().aminmax()
        return f"deployment prior {self.name}: logits + log(share / assumed share), x{low:.2g} to x{high:.2g}"


def read_prior(source: str, config: ModelConfig) -> DeploymentPrior:
    """The prior `uniform`, or of a JSON file; raises `ConfigError`.

    A file holds a positive share for each class of the model, or is what `mdpr monitor` wrote. The shares sum to 1.
    """
    classes = config.class_names
    deploy_C = torch.full((len(classes),), 1 / len(classes), dtype=torch.float64)
    reference_C = assumed_prior(config)
    if source != UNIFORM:
        content = read_json(Path(source), ConfigError) if Path(source).exists() else None
        if not isinstance(content, dict):
            raise ConfigError(f"--prior {source} must be {UNIFORM} or a JSON file: {FORM}")
        shares, measured = content.get("shares", content), content.get("model_prior")
        deploy_C = _shares(f"--prior {source}", shares, classes)
        if isinstance(content.get("shares"), dict) and measured is not None:
            reference_C = _shares(f"--prior {source}: model_prior", measured, classes)
    return DeploymentPrior(source, (deploy_C.log() - reference_C.log()).float())


def assumed_prior(config: ModelConfig) -> Tensor:
    """The class shares (C,) that the model's answers assume, from its loss and its training images.

    A loss that adjusts logits by tau log(count) leaves count^(1 - tau).
    """
    tune = config.tune
    tau = tune.loss.tau if tune.base_loss == "logit_adjusted" else float(tune.base_loss in BALANCED_LOSSES)
    if tune.sampling == "class_balanced" or tune.fusion == "gla":  # gla takes the training prior out itself
        tau = 1.0
    tau += config.tau
    count_C = torch.tensor(config.train_images, dtype=torch.float64).clamp(min=1)
    share_C = count_C ** (1 - tau)
    return share_C / share_C.sum()


def _shares(what: str, content: Any, classes: tuple[str, ...]) -> Tensor:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{what} must hold a share per class: {FORM}")
    if missing := [name for name in classes if name not in content]:
        raise ConfigError(f"{what} has no share of the model's class {missing[0]}: name all {len(classes)} classes")
    if unknown := sorted(set(map(str, content)) - set(classes)):
        raise ConfigError(f"{what}: {unknown[0]} is not a class of this model: take it out")
    for name in classes:
        value = content[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"{what}: {name} = {value!r} must be a number above 0")
    total = sum(content[name] for name in classes)
    if abs(total - 1) > SUM_TOLERANCE:
        raise ConfigError(f"{what}: the shares sum to {total:.4g}, not to 1")
    return torch.tensor([content[name] / total for name in classes], dtype=torch.float64)
