"""mdpr-tiny as a zero-shot classifier: loading it, encoding images and sentences, and counting hits.

N images, C classes, T text tokens, d joint embedding width. Features are unit length.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mdpr.errors import DataError

MODEL_NAME = "mdpr-tiny"
MODEL_FOLDER = Path("data/embedded/mdpr-tiny")
KNOWLEDGE_PATH = Path("data/embedded/knowledge/fashion-mnist.json")


def register_config(folder: Path = MODEL_FOLDER) -> None:
    """Make open_clip know the configuration in `folder` by its file's stem, in this process."""
    config = folder / f"{MODEL_NAME}.json"
    if not config.is_file():
        raise DataError(f"{config} is missing; run this from the repository's root")
    open_clip.add_model_config(folder)


def load_model(folder: Path = MODEL_FOLDER) -> open_clip.CustomTextCLIP:
    """Return the model with the weights in `folder`, in evaluation mode; open_clip loads them strictly."""
    register_config(folder)
    weights = folder / f"{MODEL_NAME}.safetensors"
    model = open_clip.create_model(MODEL_NAME, pretrained=str(weights), force_custom_text=True, require_pretrained=True)
    return model.eval()


def preprocess(pixels_Nhw: NDArray[np.uint8], model: open_clip.CustomTextCLIP) -> Tensor:
    """Return grey images (N, 28, 28) as the model's own transform makes them: float32 (N, 3, 32, 32)."""
    settings = model.visual.preprocess_cfg
    transform = open_clip.image_transform(
        model.visual.image_size, is_train=False, mean=settings["mean"], std=settings["std"]
    )
    return torch.stack([transform(Image.fromarray(pixels)) for pixels in pixels_Nhw])


@torch.inference_mode()
def image_features(model: open_clip.CustomTextCLIP, images_N: Tensor, batch: int = 500) -> Tensor:
    """Return the images' features (N, d)."""
    return torch.cat([model.encode_image(chunk, normalize=True) for chunk in images_N.split(batch)])


@torch.inference_mode()
def text_features(model: open_clip.CustomTextCLIP, texts: list[str]) -> Tensor:
    """Return the texts' features (N, d)."""
    return model.encode_text(open_clip.get_tokenizer(MODEL_NAME)(texts), normalize=True)


def accuracy(image_Nd: Tensor, class_Cd: Tensor, labels_N: Tensor) -> float:
    """Return the percentage of images whose nearest class feature is their own."""
    hits_N = (image_Nd @ class_Cd.T).argmax(dim=1) == labels_N
    return round(100 * hits_N.double().mean().item(), 2)


def class_embeddings(model: open_clip.CustomTextCLIP, knowledge: dict[str, Any]) -> dict[str, Tensor]:
    """Return class features (C, d) by the text they come from: plain name, each dimension, their mean."""
    classes = knowledge["classes"]
    embeddings = {"name": text_features(model, [f"a photo of a {entry['name']}." for entry in classes])}
    sentences = {
        dimension: text_features(model, [entry["sentences"][dimension] for entry in classes])
        for dimension in knowledge["dimensions"]
    }
    mean = functional.normalize(torch.stack(list(sentences.values())).mean(dim=0), dim=-1)
    return embeddings | {"knowledge_mean": mean} | sentences


def sentence_cosine(model: open_clip.CustomTextCLIP, knowledge_path: Path) -> float:
    """Return the mean cosine between two sentences of a class."""
    knowledge = json.loads(knowledge_path.read_text(encoding="utf-8"))
    embeddings = class_embeddings(model, knowledge)
    sentences_CVd = torch.stack([embeddings[dimension] for dimension in knowledge["dimensions"]], dim=1)
    cosine_CVV = sentences_CVd @ sentences_CVd.mT
    size = len(knowledge["dimensions"])
    rows, columns = torch.triu_indices(size, size, offset=1)
    return round(cosine_CVV[:, rows, columns].mean().item(), 3)


def zero_shot_table(model: open_clip.CustomTextCLIP, images_N: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Return zero-shot accuracy in percent, by the text that stands for the classes."""
    knowledge = json.loads(KNOWLEDGE_PATH.read_text(encoding="utf-8"))
    image_Nd = image_features(model, images_N)
    return {
        text: accuracy(image_Nd, class_Cd, labels_N) for text, class_Cd in class_embeddings(model, knowledge).items()
    }
