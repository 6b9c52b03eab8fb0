"""Pre-train mdpr-tiny contrastively on images that nothing else uses, with a hidden imbalance of the classes.

    python -m tools.embedded.pretrain --source /usr/share/datasets/fashion-mnist

The images are an exponentially imbalanced part of the first half of Fashion-MNIST's training set (see
fashion_mnist.select): a miniature of the bias that CLIP brings along. Captions name the class (captions.yaml), and each
picture has one of what was measured in it too (measured.py). A knowledge base in the terms of these measurements lies
beside the weights. `--captions classes` leaves the second kind out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save

from mdpr.artifacts import write_json
from mdpr.errors import DataError
from tools.embedded import run
from tools.embedded.build_dataset import DEFAULT_SOURCE
from tools.embedded.captions import load_captions
from tools.embedded.fashion_mnist import (
    CLASS_NAMES,
    HIDDEN_ORDER_SEED,
    SELECTION_SEED,
    Selection,
    Split,
    read_split,
    select,
)
from tools.embedded.measured import knowledge_base, measure
from tools.embedded.training import Recipe, train
from tools.embedded.zero_shot import (
    KNOWLEDGE_PATH,
    MODEL_FOLDER,
    MODEL_NAME,
    load_model,
    preprocess,
    register_config,
    sentence_cosine,
    zero_shot_table,
)

HASH_DIGITS = 16
MEASURED_FILE = "measured_knowledge.json"


def save_weights(model: open_clip.CustomTextCLIP, path: Path) -> None:
    """Write the weights rounded to fp16."""
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    path.write_bytes(save(state, metadata={"format": "pt"}))


def evaluate(folder: Path, train_split: Split, test: Split, selection: Selection) -> dict[str, dict[str, float]]:
    """Return the zero-shot tables of the saved weights on the tuning pool and on the test set."""
    model = load_model(folder)
    for knowledge in (KNOWLEDGE_PATH, folder / MEASURED_FILE):
        if knowledge.exists():
            print(f"mean cosine between two sentences of a class, {knowledge}: {sentence_cosine(model, knowledge)}")
    chosen = {
        "pool": (train_split.pixels[selection.pool], train_split.labels[selection.pool]),
        "test": (test.pixels, test.labels),
    }
    tables = {}
    for name, (pixels, labels) in chosen.items():
        tables[name] = zero_shot_table(model, preprocess(pixels, model), torch.from_numpy(labels))
        print(f"zero-shot on {name}: {tables[name]}", flush=True)
    return tables


def provenance(split: Split, selection: Selection, recipe: Recipe, tables: dict[str, Any]) -> dict[str, object]:
    """Return what went into the weights: images by hash, their true class counts, the recipe, the figures."""
    counts = np.bincount(split.labels[selection.pretraining], minlength=len(CLASS_NAMES)).tolist()
    return {
        "script": "python -m tools.embedded.pretrain",
        "license": "Apache-2.0",
        "selection_seed": SELECTION_SEED,
        "hidden_order_seed": HIDDEN_ORDER_SEED,
        "recipe": asdict(recipe),
        "captions": "tools/embedded/captions.yaml",
        "hidden_class_order": [CLASS_NAMES[label] for label in selection.hidden_order],
        "images": len(selection.pretraining),
        "images_per_class": dict(zip(CLASS_NAMES, counts, strict=True)),
        "zero_shot_accuracy_percent": tables,
        "pixel_sha256_first_16_digits": sorted(split.hashes[index][:HASH_DIGITS] for index in selection.pretraining),
    }


def pretrain(source: Path, folder: Path, recipe: Recipe, measured: bool = True) -> None:
    """Train, save the weights as fp16, and record their provenance and their own figures beside them.

    If `measured`, every picture has a caption of what was measured of it too, and a knowledge base in the same terms is
    written beside the weights.
    """
    if recipe.epochs < 1:
        raise DataError(f"--epochs {recipe.epochs}: training takes at least 1")
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    captions = load_captions()
    train_split, test = read_split(source, "train"), read_split(source, "t10k")
    selection = select(train_split, test)
    if not folder.exists():
        folder.mkdir(parents=True)
        shutil.copy(MODEL_FOLDER / f"{MODEL_NAME}.json", folder)
    register_config(folder)
    model = open_clip.create_model(MODEL_NAME, force_custom_text=True)
    images_N = preprocess(train_split.pixels[selection.pretraining], model)
    labels_N = torch.from_numpy(train_split.labels[selection.pretraining])
    value_NA = None
    if measured:
        value_NA = measure(train_split.pixels[selection.pretraining], labels_N.numpy())
        present = json.loads(KNOWLEDGE_PATH.read_text(encoding="utf-8"))
        write_json(folder / MEASURED_FILE, knowledge_base(present, value_NA, labels_N.numpy()))
    print(f"{len(images_N)} images; training", flush=True)
    train(model, images_N, labels_N, captions, recipe, value_NA)
    save_weights(model, folder / f"{MODEL_NAME}.safetensors")
    tables = evaluate(folder, train_split, test, selection)
    record = provenance(train_split, selection, recipe, tables)
    if measured:
        record["captions"] = f"{record['captions']} and tools/embedded/measured.py"
    write_json(folder / "pretraining.json", record)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train; return the exit status."""
    parser = argparse.ArgumentParser(description="Pre-train mdpr-tiny and record what went into it.")
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder with the four .gz files")
    parser.add_argument(
        "--output", type=Path, default=MODEL_FOLDER, help="folder to write; a new one gets mdpr-tiny.json"
    )
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="passes over the images")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of weights, order and captions")
    parser.add_argument("--threads", type=int, default=Recipe.threads, help="processor threads; they change the bits")
    parser.add_argument("--captions", choices=("classes", "measured"), default="measured", help="what captions say")
    options = parser.parse_args(arguments)
    recipe = Recipe(epochs=options.epochs, seed=options.seed, threads=options.threads)
    return run(lambda: pretrain(options.source, options.output, recipe, options.captions == "measured"))


if __name__ == "__main__":
    sys.exit(main())
