"""What the sentences are worth, and whether routing believes the right ones: on emblems, whose truth is known.

    python -m benchmarks.knowledge --seeds 5 [--backbones 3] [--json] [--only ours shuffled] [--set tune.epochs=4]

Settings are those of the recipe emblems-lt. Every seed draws and cuts its own training pictures; the test pictures are
the same for all. Backbone 0 is the shipped one; the others are made by

    python -m tools.embedded.pretrain_emblems --seed K --output data/backbones/K

Accuracy is class-balanced, in points, of the model's final answer unless a name says otherwise. Without training:

    zero_shot      by class names             sentences      by the mean of the five sentences
    oracle_gate    by those sentences alone that the picture bears out
    oracle         by the true states, without pixels: the class that has most of the values shown

Trained, each on the same pictures with logit adjustment:

    linear_la      class vectors on frozen features, which start as those of the names
    maple_la       the prompt tuner alone     published      with the published router, losses and fusion
    ours           the defaults               shuffled       the same with the sentences of other classes
    names_only     the same with the class name in place of every sentence

faithfulness_auc is the mean over dimensions of how well the routing weight of the true class tells pictures that show a
dimension from those that do not (0.5 to 1); auc_DIMENSION is each of them. Settings are chosen on validation with
`--first-seed 100`, whose pictures no reported figure uses.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ablation import without
from benchmarks.seeds import BATCH_IMAGES, Ground, run_seeds, seed_parser, with_settings
from mdpr.artifacts import Features
from mdpr.artifacts.truth import Truth, read_truth
from mdpr.evaluation.metrics import class_recall, group_means
from mdpr.evaluation.tables import faithfulness, oracle_accuracy
from mdpr.images.loading import make_loader
from mdpr.model.classifier import MDPR
from mdpr.params import DIMENSIONS
from mdpr.params.tuning import PUBLISHED_METHOD
from mdpr.progress import track
from mdpr.recipes import params_text, read_recipe
from mdpr.training.losses import log_class_prior

RECIPE = "emblems-lt"
BACKBONES = Path("data/backbones")
GROUPS = ("all", "few")
TRAINED = ("maple_la", "published", "ours", "shuffled", "names_only")
L2_STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of linear_la, towards the names' vectors


def main() -> None:
    parser = seed_parser(__doc__, seeds=5)
    parser.add_argument("--backbones", type=int, default=1, help="number of backbones, the shipped one first")
    parser.add_argument("--only", nargs="+", choices=TRAINED, default=list(TRAINED), help="train these models")
    parser.set_defaults(params=None)
    arguments = parser.parse_args()
    weights = [str(BACKBONES / str(index) / "emblem-tiny.safetensors") for index in range(1, arguments.backbones)]
    if weights:
        weights.insert(0, read_recipe(RECIPE).settings["backbone"]["weights"])
    with tempfile.TemporaryDirectory() as folder:
        if arguments.params is None:
            arguments.params = Path(folder) / "params.yaml"
            arguments.params.write_text(params_text(read_recipe(RECIPE), None), encoding="utf-8")
        run_seeds("knowledge", arguments, partial(run_seed, names=arguments.only), weights)


def run_seed(ground: Ground, names: Sequence[str]) -> dict[str, float]:
    """All figures of one seed."""
    started = time.perf_counter()
    truth = read_truth(ground.prepared)
    assert truth is not None, "this benchmark needs prepare.source = emblems"
    figures = untrained(ground, truth)
    for name in track(names, "models"):
        figures |= trained(ground, name, truth)
    figures |= gains(figures)
    return figures | {"minutes": (time.perf_counter() - started) / 60}


def trained(ground: Ground, name: str, truth: Truth) -> dict[str, float]:
    """Train one of `TRAINED`: all and few of its answer; of ours the branches and the routing too."""
    base = ground.tune.model_copy(update={"routing": False, "base_loss": "logit_adjusted"})
    published = with_settings(ground.tune, PUBLISHED_METHOD | {"base_loss": "logit_adjusted"})
    tune = {"maple_la": base, "published": published}.get(name, ground.tune)
    features = {
        "shuffled": lambda: without(ground.features, "shuffled_sentences"),
        "names_only": lambda: names_as_sentences(ground),
    }.get(name, lambda: ground.features)()
    model = ground.train(tune, features)
    scores = ground.score_branches(model)
    figures = {f"{name}_{group}": scores["fused"][group] for group in GROUPS}
    if name in ("published", "ours"):
        figures |= {f"{name}_{branch}_all": scores[branch]["all"] for branch in ("base", "routed")}
        found = faithfulness(true_class_weights(ground, model), truth.of("test"))
        prefix = "" if name == "ours" else f"{name}_"
        figures |= {f"{prefix}auc_{dimension}": value for dimension, value in found.items()}
        figures[f"{prefix}faithfulness_auc"] = mean(found.values())
    return figures


def gains(figures: Mapping[str, float]) -> dict[str, float]:
    """Differences of one seed's figures, as far as it has them."""
    best_branch = {"best_branch_all": max(figures.get("ours_base_all", 0.0), figures.get("ours_routed_all", 0.0))}
    known = dict(figures) | best_branch
    pairs = {
        "gain_over_la": ("ours_all", "maple_la_all"),
        "gain_over_la_few": ("ours_few", "maple_la_few"),
        "gain_over_linear": ("ours_all", "linear_la_all"),
        "gain_over_published": ("ours_all", "published_all"),
        "fused_minus_best_branch": ("ours_all", "best_branch_all"),
        "shuffled_vs_base": ("shuffled_all", "maple_la_all"),
        "names_only_drop": ("ours_all", "names_only_all"),
    }
    return {name: known[a] - known[b] for name, (a, b) in pairs.items() if a in known and b in known}


def untrained(ground: Ground, truth: Truth) -> dict[str, float]:
    """What the frozen model knows, what the truth would give, and a linear classifier on frozen features."""
    image_Nd, label_N = frozen_features(ground, "test")
    sentences_CVd = F.normalize(torch.as_tensor(ground.features.sentences_CVd), dim=-1)
    logits_NCV = torch.einsum("nd,cvd->ncv", image_Nd, sentences_CVd)
    pictures = truth.of("test")
    is_believed_NV = torch.ones(len(pictures), len(DIMENSIONS))
    for index, dimension in enumerate(DIMENSIONS):
        if dimension in pictures:
            is_believed_NV[:, index] = torch.from_numpy(pictures[dimension].to_numpy() == "shown").float()
    answers = {
        "zero_shot": image_Nd @ torch.as_tensor(ground.probe.text_Cd).T,
        "sentences": logits_NCV.mean(dim=2),
        "oracle_gate": (logits_NCV * is_believed_NV[:, None]).sum(dim=2),
        "linear_la": linear_la(ground, image_Nd),
    }
    figures: dict[str, float] = {}
    for name, logits_NC in answers.items():
        groups = balanced(ground, label_N, logits_NC)
        figures |= {f"{name}_{group}": 100 * groups[group] for group in GROUPS}
    oracle = oracle_accuracy(truth, "test", ground.shots)
    return figures | {f"oracle_{group}": 100 * oracle[group] for group in GROUPS}


def linear_la(ground: Ground, test_Nd: Tensor) -> Tensor:
    """Logits (N, C) of logistic regression on frozen features with logit adjustment.

    Its class vectors start as those of the names, and are pulled back to them (L2) as strongly as validation prefers.
    """
    (train_Nd, label_N), (val_Nd, val_label_N) = (frozen_features(ground, split) for split in ("train", "val"))
    scale = ground.probe.logit_scale
    shift_C = log_class_prior(torch.tensor([item.train_images for item in ground.classes]))
    start_Cd = torch.as_tensor(ground.probe.text_Cd)
    fits = [
        fit_from(start_Cd, scale * train_Nd, torch.from_numpy(label_N), shift_C, strength) for strength in L2_STRENGTHS
    ]
    best_Cd = max(fits, key=lambda fit_Cd: balanced(ground, val_label_N, val_Nd @ fit_Cd.T)["all"])
    return scale * test_Nd @ best_Cd.T


def fit_from(start_Cd: Tensor, image_Nd: Tensor, label_N: Tensor, shift_C: Tensor, strength: float) -> Tensor:
    """Class vectors (C, d) that minimise the adjusted cross entropy plus `strength` times their way from the start."""
    change_Cd = torch.zeros_like(start_Cd, requires_grad=True)
    optimizer = torch.optim.LBFGS([change_Cd], max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(image_Nd @ (start_Cd + change_Cd).T + shift_C, label_N)
        loss = loss + strength * change_Cd.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return start_Cd + change_Cd.detach()


def balanced(ground: Ground, label_N: np.ndarray, logits_NC: Tensor) -> dict[str, float]:
    """Group -> class-balanced accuracy (0..1)."""
    return group_means(class_recall(label_N, logits_NC.argmax(dim=1).numpy(), len(ground.shots)), ground.shots)


@torch.no_grad()
def frozen_features(ground: Ground, split: str) -> tuple[Tensor, np.ndarray]:
    """Unit-length features (N, d) of the frozen tower, and labels (N,)."""
    table = ground.table(split)
    parts = [ground.frozen.encode_image(image_B3HW) for image_B3HW, _ in make_loader(table, BATCH_IMAGES)]
    return torch.cat(parts), table.labels_N


@torch.no_grad()
def true_class_weights(ground: Ground, model: MDPR) -> np.ndarray:
    """Routing weights (N, V) of each test picture for its own class."""
    model.eval()
    constants = model.constants()
    parts = []
    for image_B3HW, label_B in make_loader(ground.table("test"), BATCH_IMAGES):
        weights_BCV = model(image_B3HW, constants=constants).weights_BCV
        parts.append(weights_BCV[torch.arange(len(label_B)), label_B])
    return torch.cat(parts).numpy()


def names_as_sentences(ground: Ground) -> Features:
    """Features in which every sentence of a class is its plain name."""
    name_Cd = ground.probe.text_Cd
    shape = ground.features.sentences_CVd.shape
    return replace(
        ground.features,
        sentences_CVd=np.broadcast_to(name_Cd[:, None], shape).copy(),
        summary_Cd=name_Cd,
        prior_CV=np.ones(shape[:2], dtype=np.float32),
    )


if __name__ == "__main__":
    main()
