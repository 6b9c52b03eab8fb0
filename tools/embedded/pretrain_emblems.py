"""Pre-train emblem-tiny contrastively on drawn pictures.

    python -m tools.embedded.pretrain_emblems                                  # data/embedded/emblems/
    python -m tools.embedded.pretrain_emblems --seed 1 --output /tmp/backbone  # another one, for benchmarks.knowledge

Half of the pictures are of a class, drawn by its hidden share; captions name it in two of three cases. The others are
free combinations of values that nothing names. A caption fits every picture of the batch in which all it claims is to
be seen, foreign values too: the model learns to read pictures, not which of their parts to believe.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor

from mdpr.artifacts import write_json
from mdpr.data.sources.emblems import (
    ABSENT,
    ATTRIBUTES,
    SHOWN,
    VALUES,
    Pictures,
    World,
    build_world,
    draw_pictures,
    render,
)
from mdpr.errors import DataError
from tools.embedded import run
from tools.embedded.emblem_words import NOTHING, caption, knowledge_base
from tools.embedded.pretrain import save_weights
from tools.embedded.training import MAX_LOG_SCALE, Recipe, both_ways_loss, encode_captions, make_optimizer

FOLDER = Path("data/embedded/emblems")
MODEL_NAME = "emblem-tiny"
CONFIG = Path(__file__).resolve().parents[2] / FOLDER / f"{MODEL_NAME}.json"
PICTURES = 24_000
NAMED_SHARE = 0.5
ABSENT_A, FOREIGN_A = (0.35,) * 5, (0.0, 0.0, 0.1, 0.1, 0.1)  # of pre-training: neither setting of prepare.emblems
CAPTION_NAMES = 0.65  # share of a class's captions that say its name
CAPTION_NAMES_ALONE = 0.3  # and of those that say nothing else
CAPTION_CONTRASTS = 0.12
EVALUATION_PICTURES = 1_000
REPORT_STEPS = 100
RECORDED = ("batch", "learning_rate", "weight_decay", "warmup_steps", "seed", "threads")
PREPROCESS_MEAN, PREPROCESS_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


@dataclass(frozen=True)
class Batch:
    """Pictures float32 (B, 3, 32, 32), their captions, and which caption fits which picture, bool (B, B)."""

    images_B3HW: Tensor
    texts: list[str]
    fits_BB: Tensor


class Album:
    """The pictures of pre-training, drawn once; captions are new in every batch."""

    def __init__(self, world: World, random: np.random.Generator, size: int = PICTURES) -> None:
        self.world = world
        classes = len(world.names)
        is_named = random.random(size) < NAMED_SHARE
        self.label_N = np.where(is_named, random.choice(classes, size, p=world.hidden_share_C), NOTHING)
        free_NA = random.integers(0, VALUES, (size, len(ATTRIBUTES)))
        true_NA = np.where(is_named[:, None], world.value_CA[self.label_N], free_NA)
        pictures = draw_pictures(self.label_N, true_NA, ABSENT_A, FOREIGN_A, random)
        self.seen_NA = np.where(pictures.state_NA == ABSENT, NOTHING, pictures.drawn_NA)
        self.pixels_NHW3 = render_all(pictures, random)

    def batch(self, rows: np.ndarray, random: np.random.Generator) -> Batch:
        label_B, seen_BA = self.label_N[rows], self.seen_NA[rows]
        claim_BA = np.full_like(seen_BA, NOTHING)
        named_B = np.full(len(rows), NOTHING)
        texts = []
        for i, label in enumerate(label_B.tolist()):
            says_name = label != NOTHING and random.random() < CAPTION_NAMES
            claims = 0 if says_name and random.random() < CAPTION_NAMES_ALONE else int(random.integers(1, 4))
            said = random.permutation(np.flatnonzero(seen_BA[i] != NOTHING))[:claims]
            claim_BA[i, said] = seen_BA[i, said]
            if says_name:
                named_B[i] = label
            rival = int(random.integers(len(self.world.names))) if random.random() < CAPTION_CONTRASTS else None
            texts.append(
                caption(
                    claim_BA[i],
                    self.world.names[label] if says_name else None,
                    random,
                    None if rival is None else self.world.names[rival],
                )
            )
        is_true_BBA = (claim_BA[None] == NOTHING) | (claim_BA[None] == seen_BA[:, None])
        is_name_BB = (named_B[None] == NOTHING) | (named_B[None] == label_B[:, None])
        return Batch(preprocess(self.pixels_NHW3[rows]), texts, torch.from_numpy(is_true_BBA.all(-1) & is_name_BB))


def render_all(pictures: Pictures, random: np.random.Generator) -> np.ndarray:
    """All pictures, uint8 (N, 32, 32, 3)."""
    drawn = zip(pictures.drawn_NA, pictures.state_NA, strict=True)
    return np.stack([render(drawn_A, state_A, random) for drawn_A, state_A in drawn])


def preprocess(pixels_NHW3: np.ndarray) -> Tensor:
    """Pictures of the model's size after its own transform: float32 (N, 3, 32, 32)."""
    images_N3HW = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESS_MEAN, PREPROCESS_STD))
    return (images_N3HW - mean) / std


@torch.no_grad()
def zero_shot(model: open_clip.CustomTextCLIP, world: World, random: np.random.Generator) -> dict[str, float]:
    """Accuracy in percent on fresh pictures: each attribute where it is shown, the class by name and by sentences."""
    model.eval()
    tokenize = open_clip.get_tokenizer(MODEL_NAME)
    label_N = random.integers(0, len(world.names), EVALUATION_PICTURES)
    pictures = draw_pictures(label_N, world.value_CA[label_N], ABSENT_A, (0.0,) * len(ATTRIBUTES), random)
    image_Nd = model.encode_image(preprocess(render_all(pictures, random)), normalize=True)

    def accuracy(text_Kd: Tensor, answer_N: np.ndarray, counted_N: np.ndarray | slice = slice(None)) -> float:
        hits_N = (image_Nd @ text_Kd.T).argmax(dim=1).numpy() == answer_N
        return round(100 * float(hits_N[counted_N].mean()), 1)

    figures = {}
    for attribute, name in enumerate(ATTRIBUTES):
        claims = [np.where(np.arange(len(ATTRIBUTES)) == attribute, value, NOTHING) for value in range(VALUES)]
        texts = [caption(claim_A, None, np.random.default_rng(0)) for claim_A in claims]
        text_Kd = encode_captions(model, tokenize(texts))
        figures[name] = accuracy(text_Kd, world.value_CA[label_N, attribute], pictures.state_NA[:, attribute] == SHOWN)
    entries = knowledge_base(world)["classes"]
    figures["name"] = accuracy(encode_captions(model, tokenize([f"a photo of a {n}." for n in world.names])), label_N)
    by_dimension = zip(*(entry["sentences"].values() for entry in entries), strict=True)
    sentences_VCd = torch.stack([encode_captions(model, tokenize(list(texts))) for texts in by_dimension])
    figures["sentences"] = accuracy(sentences_VCd.mean(dim=0), label_N)
    model.train()
    return figures


def pretrain(folder: Path, steps: int, seed: int) -> None:
    """Train, save the weights as fp16, and record what went into them and their own figures beside them."""
    if steps < 1:
        raise DataError(f"--steps {steps}: training takes at least 1")
    recipe = Recipe(batch=128, learning_rate=1e-3, warmup_steps=100, seed=seed, threads=1)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    world, random = build_world(), np.random.default_rng((seed, 17))
    open_clip.add_model_config(CONFIG)
    model = open_clip.create_model(MODEL_NAME, force_custom_text=True)
    album = Album(world, random)
    train(model, album, recipe, steps, random)
    images_C = np.bincount(album.label_N[album.label_N != NOTHING], minlength=len(world.names))
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / f"{MODEL_NAME}.safetensors")
    record = {
        "script": "python -m tools.embedded.pretrain_emblems",
        "license": "Apache-2.0",
        "steps": steps,
        "recipe": {key: getattr(recipe, key) for key in RECORDED},
        "images": PICTURES,
        "images_per_class": dict(zip(world.names, images_C.tolist(), strict=True)),
        "zero_shot_accuracy_percent": zero_shot(model, world, np.random.default_rng(0)),
    }
    write_json(folder / "pretraining.json", record)
    print(record["zero_shot_accuracy_percent"])


def train(
    model: open_clip.CustomTextCLIP, album: Album, recipe: Recipe, steps: int, random: np.random.Generator
) -> None:
    """Train `model` in place. Words that no caption has get the embedding 0, so that the file packs well."""
    tokenize = open_clip.get_tokenizer(MODEL_NAME)
    optimizer, schedule = make_optimizer(model, recipe, steps)
    is_said = torch.zeros(model.text.vocab_size, dtype=torch.bool)
    started, total = time.perf_counter(), 0.0
    model.train()
    for step in range(1, steps + 1):
        batch = album.batch(random.choice(len(album.label_N), recipe.batch, replace=False), random)
        tokens_BT = tokenize(batch.texts)
        is_said[tokens_BT] = True
        image_Bd = model.encode_image(batch.images_B3HW, normalize=True)
        logits_BB = model.logit_scale.exp() * image_Bd @ encode_captions(model, tokens_BT).T
        loss = both_ways_loss(logits_BB, batch.fits_BB)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOG_SCALE)
        total += loss.item()
        if step % REPORT_STEPS == 0:
            seconds = time.perf_counter() - started
            scale = model.logit_scale.exp().item()
            print(
                f"step {step}/{steps}: loss {total / REPORT_STEPS:.3f}, scale {scale:.1f}, {seconds:.0f} s", flush=True
            )
            total = 0.0
    with torch.no_grad():
        model.text.token_embedding.weight[~is_said] = 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train; return the exit status."""
    parser = argparse.ArgumentParser(description="Pre-train emblem-tiny and record what went into it.")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to write")
    parser.add_argument("--steps", type=int, default=1_800, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, pictures and captions")
    options = parser.parse_args(arguments)
    return run(lambda: pretrain(options.output, options.steps, options.seed))


if __name__ == "__main__":
    sys.exit(main())
