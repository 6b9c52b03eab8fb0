"""Every tuner with routing off and on, on plain cross entropy and with logit adjustment, on both shipped sets.

    python -m benchmarks.tuners --seeds 3 [--json] [--sets emblems-lt] [--only maple adaptformer] [--losses la]

Prompt tuners keep the text head; adapters, and `none`, get the cosine head (`tune.head`). All other settings are
the set's recipe. Every seed cuts its own long tail and trains its own models, each selected on validation and scored
once on the test set; accuracy is in points, the class-balanced mean. parameters are the learned numbers,
step_over_tower a training step's processor seconds over those of the image tower's own forward and backward pass, with
its prompts or adapters, on the first seed. Every row is printed as it comes, on stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.measure import compare
from benchmarks.report import device_name, emit, interval_95, make_parser
from benchmarks.seeds import PACKAGES, Ground, lay_ground, with_settings
from mdpr.images.loading import make_loader
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.model.towers import prompted_image_features
from mdpr.model.tuners import TUNERS
from mdpr.params import load_params
from mdpr.progress import track
from mdpr.recipes import params_text, read_recipe
from mdpr.training.losses import Objective

logger = logging.getLogger("benchmarks.tuners")

SETS = ("fashion-mnist-lt", "emblems-lt")
PROMPTS = ("coop", "vpt", "ivlp", "maple")  # with the text head
LOSSES = {"ce": "ce", "la": "logit_adjusted"}
STEPS = 30  # timed, of each model
MEASURED = ("all", "few", "parameters", "step_over_tower")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="these recipes")
    parser.add_argument("--only", nargs="+", choices=TUNERS, default=list(TUNERS), help="these tuners")
    parser.add_argument("--routing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="of the base branch")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    rows = [row for recipe in arguments.sets for row in run_set(recipe, arguments)]
    table = summarise(rows)
    emit("tuners", device_name(), PACKAGES, figures_of(table), rows, arguments.json, table)


def run_set(recipe: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per seed and model of one recipe."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(params_text(read_recipe(recipe), None), encoding="utf-8")
        frozen = Backbone.load(load_params(file, arguments.overrides).backbone)
        for seed in range(arguments.seeds):
            params = load_params(file, [*arguments.overrides, f"prepare.seed={seed}", f"tune.seed={seed}"])
            ground = lay_ground(Path(folder) / str(seed), params, frozen)
            models = list(product(arguments.only, arguments.routing, arguments.losses))
            for tuner, routing, loss in track(models, f"{recipe}, seed {seed}"):
                where = {"set": recipe, "tuner": tuner, "routing": routing, "loss": loss, "seed": seed}
                model, figures = measure(ground, tuner, routing == "on", LOSSES[loss])
                if seed == 0:
                    figures["step_over_tower"] = step_over_tower(ground, model)
                rows.append(where | figures)
                logger.info(json.dumps(rows[-1]))
    return rows


def measure(ground: Ground, tuner: str, routing: bool, base_loss: str) -> tuple[MDPR, dict[str, float]]:
    """A trained model, its scores and its size."""
    head = "text" if tuner in PROMPTS else "cosine"
    tune = with_settings(ground.tune, {"prompting": tuner, "head": head, "routing": routing, "base_loss": base_loss})
    model = ground.train(tune, ground.features)
    scores = ground.score_branches(model)["fused"]
    learned = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return model, {"all": scores["all"], "few": scores["few"], "parameters": learned}


def step_over_tower(ground: Ground, model: MDPR) -> float:
    """Seconds of a step over those of the image tower alone, medians of `STEPS`."""
    counts = [item.train_images for item in ground.classes]
    objective, visual = Objective(model.train(), counts, ground.features), model.backbone.visual
    image_B3HW, label_B = next(iter(make_loader(ground.table("test"), ground.tune.batch_size)))
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(objective.terms(model(image_B3HW, label_B), label_B, 0).values())).sum().backward()
        optimizer.step()

    def tower() -> None:
        optimizer.zero_grad(set_to_none=True)
        prompts = model.tuner()
        features_Bd = prompted_image_features(visual, image_B3HW, prompts.visual, adapters=prompts.adapters)
        if features_Bd.requires_grad:
            features_Bd.sum().backward()

    costs = compare({"step": step, "tower": tower}, "cpu", STEPS, time.process_time)
    return costs["step"].seconds / costs["tower"].seconds


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds: means, and half widths of the accuracies' 95 % intervals; best of a set first."""
    keys = ("set", "tuner", "routing", "loss")
    models = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    table = []
    for model in models:
        found = [row for row in rows if tuple(row[key] for key in keys) == model]
        line: dict[str, Any] = dict(zip(keys, model, strict=True))
        for name in MEASURED:
            values = [row[name] for row in found if name in row]
            line[name] = mean(values) if name in ("all", "few") else values[0]
            if name in ("all", "few"):
                line[f"{name} ± 95 %"] = interval_95(values)
        table.append(line)
    return sorted(table, key=lambda line: (SETS.index(line["set"]), -line["all"]))


def figures_of(table: list[Mapping[str, Any]] | list[dict[str, Any]]) -> dict[str, float]:
    """{set}_{tuner}_{routing}_{loss}_{all, few}, their intervals, and how far the best is above MaPLe, both with la."""
    figures: dict[str, float] = {}
    for line in table:
        name = "_".join((line["set"], line["tuner"], "mdpr" if line["routing"] == "on" else "alone", line["loss"]))
        figures |= {f"{name}_{group}": line[group] for group in ("all", "few")}
        figures |= {f"{name}_{group}_ci95": line[f"{group} ± 95 %"] for group in ("all", "few")}
    for chosen in dict.fromkeys(line["set"] for line in table):
        best = next(line for line in table if line["set"] == chosen)
        reference = f"{chosen}_maple_alone_la_all"
        if reference in figures:
            figures[f"{chosen}_best_minus_maple_la"] = best["all"] - figures[reference]
    return {name: value for name, value in figures.items() if math.isfinite(value)}


if __name__ == "__main__":
    main()
