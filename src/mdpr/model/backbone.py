"""The frozen CLIP model: built by open_clip, never trained here; with learned weights and encoded sentences on disk.

Weights are safetensors, never pickle.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a damaged file; nothing is unpickled here
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors import SafetensorError
from torch import Tensor, nn

from mdpr.artifacts import Features, Knowledge, check_digest, check_finite, read_tensors, write_tensors
from mdpr.errors import ArtifactError, BackboneError
from mdpr.model.towers import image_features
from mdpr.params import BackboneParams

WEIGHTS = "mdpr-weights/1"
LOGIT_SCALE_MAX = 100.0  # CLIP's own bound on exp(logit_scale)


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write learned weights as safetensors; the same weights give the same bytes."""
    write_tensors(path, {name: value.detach().cpu().numpy() for name, value in state.items()}, {"format": WEIGHTS})


def load_weights(path: Path) -> dict[str, Tensor]:
    """Raises `ArtifactError` if the file is missing, damaged or changed."""
    arrays, metadata = read_tensors(path, "tune")
    check_finite(path, arrays, "tune")
    check_digest(path, arrays, metadata, "tune")
    return {name: torch.tensor(array) for name, array in arrays.items()}


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one; raises `BackboneError` for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackboneError("backbone.device = cuda: no CUDA GPU is visible; use auto or cpu")
    return torch.device(name)


class Backbone(nn.Module):
    """An open_clip model in evaluation mode with every weight frozen, its tokenizer and its image statistics."""

    clip: Any  # open_clip ships no types

    def __init__(self, clip: nn.Module, architecture: str, tokenizer: Any) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.architecture = architecture
        self.tokenizer = tokenizer
        preprocess = open_clip.get_model_preprocess_cfg(clip)
        size = preprocess["size"]
        self.image_size_px: int = size[0] if isinstance(size, (tuple, list)) else size
        self.image_mean: tuple[float, ...] = tuple(preprocess["mean"])
        self.image_std: tuple[float, ...] = tuple(preprocess["std"])
        self.fingerprint = f"{architecture}:{_weights_digest(clip)}"

    @classmethod
    def load(cls, params: BackboneParams) -> Backbone:
        """Build the model `params` names, with its weights, on its device.

        Raises `BackboneError` if open_clip does not know the architecture or the weights are not there.
        """
        device = choose_device(params.device)
        name = _register_architecture(params.architecture)
        weights = params.weights
        if weights.endswith((".safetensors", ".pt", ".bin", ".pth")) or "/" in weights:
            if not Path(weights).is_file():
                raise BackboneError(f"backbone.weights: {weights} does not exist; name a file or an open_clip tag")
        elif weights not in open_clip.list_pretrained_tags_by_model(name):
            known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
            raise BackboneError(f"backbone.weights = {weights!r}: {name} has the tags {known}")
        try:
            with _quiet_open_clip():
                tokenizer = open_clip.get_tokenizer(name)
                clip = open_clip.create_model(
                    name, pretrained=weights, force_custom_text=True, require_pretrained=True, device=device
                )
        except (RuntimeError, OSError, ValueError, LookupError, EOFError, SafetensorError, UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BackboneError(f"backbone.weights = {weights!r} could not be loaded into {name}: {reason}") from error
        return cls(clip, name, tokenizer)

    def train(self, mode: bool = True) -> Backbone:
        """The frozen model always stays in evaluation mode."""
        return super().train(False)

    def check_fingerprint(self, what: str | Path, fingerprint: str) -> None:
        """Raise `ArtifactError` if `what` was made with another backbone than this one."""
        if fingerprint != self.fingerprint:
            raise ArtifactError(
                f"{what} was made with {fingerprint}, the backbone is {self.fingerprint}: "
                "rerun its stage (dvc repro --force), or restore backbone.weights"
            )

    @property
    def device(self) -> torch.device:
        device: torch.device = self.clip.logit_scale.device
        return device

    @property
    def logit_scale(self) -> Tensor:
        """s = exp(logit_scale), at most 100."""
        scale: Tensor = self.clip.logit_scale.exp().clamp(max=LOGIT_SCALE_MAX)
        return scale

    @property
    def text(self) -> TextTransformer:
        """The text tower; raises `BackboneError` if prompts cannot enter it."""
        if not isinstance(self.clip.text, TextTransformer):
            raise BackboneError(
                f"{self.architecture} has a {type(self.clip.text).__name__} text tower, which takes no context tokens: "
                "use tune.prompting = none, or a model with open_clip's own text transformer"
            )
        return self.clip.text

    @property
    def visual(self) -> VisionTransformer:
        """The image tower; raises `BackboneError` if tokens and adapters cannot enter it."""
        if not isinstance(self.clip.visual, VisionTransformer):
            raise BackboneError(
                f"{self.architecture} has a {type(self.clip.visual).__name__} image tower, which takes no visual "
                "tokens and no adapters: use tune.prompting = coop, or none (with tune.head = cosine, for example), or "
                "a model with open_clip's own vision transformer"
            )
        return self.clip.visual

    @property
    def embed_width(self) -> int:
        """d, the width of the joint space."""
        return int(self.encode_text(["a"]).shape[1])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, T), int64; raises `BackboneError` for a text that does not fit (it is never cut)."""
        tokens = self.tokenizer(list(texts))
        # The tokenizer cuts silently: a text that fills the last place may have been cut.
        for index in (tokens[:, -1] != 0).nonzero().flatten().tolist():
            if len(self.tokenizer.encode(texts[index])) + 2 > tokens.shape[1]:
                raise BackboneError(
                    f"longer than the {tokens.shape[1]} tokens of {self.architecture}: {texts[index]!r}"
                )
        return tokens.to(self.device)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256, normalize: bool = True) -> Tensor:
        """Features (N, d), float32, unit length unless `normalize` is false."""
        parts = [
            self.clip.encode_text(self.tokenize(texts[start : start + batch_size])).float()
            for start in range(0, len(texts), batch_size)
        ]
        features_Nd = torch.cat(parts)
        return F.normalize(features_Nd, dim=-1) if normalize else features_Nd

    @torch.no_grad()
    def encode_image(self, image_B3HW: Tensor) -> Tensor:
        """Unit-length features (B, d), float32, of the frozen tower."""
        return image_features(self.clip.visual, image_B3HW)


def encode_knowledge(
    backbone: Backbone, knowledge: Knowledge, *, digest: str, normalize: bool, batch_size: int
) -> Features:
    """P (C, V, d), m (C, d) and M (C, V) of a complete knowledge base.

    `normalize` gives P unit-length rows before m is taken as their mean; the published code takes both as they leave
    the encoder. M is a cosine either way. Raises `BackboneError` for a sentence longer than the text tower.
    Source: Jia et al., Findings of EMNLP 2025, section 3.
    """
    sentences_CV = knowledge.sentences_CV()
    flat = [sentence for sentences in sentences_CV for sentence in sentences]
    sentences_CVd = backbone.encode_text(flat, batch_size, normalize).unflatten(0, (len(sentences_CV), -1))
    names_Cd = backbone.encode_text([item.name for item in knowledge.classes], batch_size)
    prior_CV = (F.normalize(sentences_CVd, dim=-1) @ names_Cd[:, :, None]).squeeze(-1)
    return Features(
        sentences_CVd=sentences_CVd.cpu().numpy(),
        summary_Cd=sentences_CVd.mean(dim=1).cpu().numpy(),
        prior_CV=prior_CV.cpu().numpy(),
        fingerprint=backbone.fingerprint,
        knowledge_digest=digest,
    )


def _register_architecture(architecture: str) -> str:
    """The open_clip name of an architecture given by name or by the path of its JSON configuration."""
    if architecture.endswith(".json"):
        path = Path(architecture)
        if not path.is_file():
            raise BackboneError(f"backbone.architecture: {path} does not exist")
        open_clip.add_model_config(path)
        if open_clip.get_model_config(path.stem) is None:
            raise BackboneError(f"backbone.architecture: {path} is not an open_clip model configuration")
        return path.stem
    if open_clip.get_model_config(architecture) is None:
        raise BackboneError(
            f"backbone.architecture = {architecture!r} is not known to open_clip "
            f"(for example ViT-B-16-quickgelu; {len(open_clip.list_models())} are listed by open_clip.list_models())"
        )
    return architecture


def _weights_digest(clip: nn.Module) -> str:
    """First 16 hex digits of the sha256 of every weight in float32, so that precision does not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """open_clip logs every step of loading on the root logger; errors are still raised."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
