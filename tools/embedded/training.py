"""Contrastive training with several positives: a batch of images against a few captions of every class.

B images in a batch, N captions in a step, T text tokens, C classes, d joint embedding width.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from tools.embedded.captions import Captions, draw
from tools.embedded.fashion_mnist import CLASS_NAMES
from tools.embedded.measured import draw_caption, fits

MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class Recipe:
    """How to train; on the same machine and thread count the same recipe gives the same weights."""

    epochs: int = 12
    batch: int = 64
    captions_per_class: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 80
    seed: int = 0
    threads: int = 1


def multi_positive_loss(logits_BN: Tensor, image_labels_B: Tensor, caption_labels_N: Tensor) -> Tensor:
    """Return the image-to-text cross entropy, spread evenly over all captions of the image's class."""
    positive_BN = image_labels_B[:, None] == caption_labels_N[None, :]
    log_probability_BN = logits_BN.log_softmax(dim=1)
    return -(log_probability_BN * positive_BN).sum(dim=1).div(positive_BN.sum(dim=1)).mean()


def draw_captions(captions: Captions, per_class: int, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return tokens (N, T) and labels (N,) of `per_class` captions per class, each from another frame group."""
    texts = [
        captions.sample(label, group, chance)
        for label in range(len(CLASS_NAMES))
        for group in draw(list(captions.frames), per_class, chance)
    ]
    labels_N = torch.arange(len(CLASS_NAMES)).repeat_interleave(per_class)
    return open_clip.tokenize(texts), labels_N


def mirror_half(images_B: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, 3, h, w), each mirrored left to right at even odds."""
    mirrored_B = torch.rand(len(images_B), generator=generator) < 0.5
    return torch.where(mirrored_B[:, None, None, None], images_B.flip(-1), images_B)


def encode_captions(model: open_clip.CustomTextCLIP, tokens_NT: Tensor) -> Tensor:
    """Return the captions' features (N, d), computed on no more tokens than the longest caption has.

    A causal tower never looks beyond the end token (the largest id), so cutting the padding changes nothing.
    """
    longest = int(tokens_NT.argmax(dim=-1).max()) + 1
    full_mask = model.text.attn_mask
    model.text.attn_mask = full_mask[:longest, :longest]
    try:
        return model.encode_text(tokens_NT[:, :longest], normalize=True)
    finally:
        model.text.attn_mask = full_mask


def make_optimizer(model: open_clip.CustomTextCLIP, recipe: Recipe, steps: int) -> tuple[AdamW, LambdaLR]:
    """Return AdamW with a warm-up and cosine schedule; it decays matrices only.

    Vectors are left out as usual, embeddings because decay would shrink the rows of words that never occur.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (plain if parameter.ndim < 2 or "embedding" in name else decayed).append(parameter)
    optimizer = AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / recipe.warmup_steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))

    return optimizer, LambdaLR(optimizer, factor)


def both_ways_loss(logits_BB: Tensor, fits_BB: Tensor) -> Tensor:
    """Cross entropy from pictures to captions and back, spread evenly over all that fit."""
    target_BB = fits_BB.float()
    to_text = -(logits_BB.log_softmax(dim=1) * target_BB).sum(dim=1) / target_BB.sum(dim=1)
    to_image = -(logits_BB.log_softmax(dim=0) * target_BB).sum(dim=0) / target_BB.sum(dim=0)
    return (to_text.mean() + to_image.mean()) / 2


def train(
    model: open_clip.CustomTextCLIP,
    images_N: Tensor,
    labels_N: Tensor,
    captions: Captions,
    recipe: Recipe,
    value_NA: NDArray[np.int64] | None = None,
) -> None:
    """Train `model` in place on preprocessed images (N, 3, 32, 32), printing one line per epoch.

    With `value_NA`, what was measured of each picture, every picture of a batch has such a caption too.
    """
    chance = np.random.default_rng(recipe.seed)
    shuffler = torch.Generator().manual_seed(recipe.seed)
    steps_per_epoch = len(images_N) // recipe.batch
    optimizer, schedule = make_optimizer(model, recipe, recipe.epochs * steps_per_epoch)
    model.train()
    for epoch in range(1, recipe.epochs + 1):
        started, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images_N), generator=shuffler)
        for batch in order.split(recipe.batch)[:steps_per_epoch]:
            images_B = mirror_half(images_N[batch], shuffler)
            tokens_NT, caption_labels_N = draw_captions(captions, recipe.captions_per_class, chance)
            image_Bd = model.encode_image(images_B, normalize=True)
            text_Nd = encode_captions(model, tokens_NT)
            logits_BN = model.logit_scale.exp() * image_Bd @ text_Nd.T
            loss = multi_positive_loss(logits_BN, labels_N[batch], caption_labels_N)
            if value_NA is not None:
                value_BA, label_B = value_NA[batch.numpy()], labels_N[batch].numpy()
                said = [draw_caption(*picture, chance) for picture in zip(value_BA, label_B.tolist(), strict=True)]
                said_Bd = encode_captions(model, open_clip.tokenize([caption.text for caption in said]))
                logits_BB = model.logit_scale.exp() * image_Bd @ said_Bd.T
                loss = loss + both_ways_loss(logits_BB, fits(said, value_BA, label_B))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOG_SCALE)
            total += loss.item()
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch}/{recipe.epochs}: loss {total / steps_per_epoch:.4f}, "
            f"scale {model.logit_scale.exp().item():.1f}, {seconds:.0f} s",
            flush=True,
        )
