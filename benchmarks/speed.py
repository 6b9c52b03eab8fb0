"""The cost of a training step, the router and an evaluation pass, beside the published computation and the floor.

    python -m benchmarks.speed --classes 100 1000 --batch 128 --backbone ViT-B-16 --device cuda [--json]
    python -m benchmarks.speed --classes 100 --batch 16 --device cpu --only step
    python -m benchmarks.speed --classes 1000 --batch 16 --only step eval --prompting lora --head cosine

Three computations in turn, in one process, on the same random weights (medians):
    published  benchmarks.published: 77 text tokens per class, repeated tensors, text again for every evaluation batch
    ours       mdpr as it trains and evaluates
    floor      only our own image tower, with its prompts or adapters, forward and backward for a step; in evaluation
               adapters are left out: that is the frozen tower
Figures end in _c<number of classes>. On a machine whose memory cannot hold the published text tower's activations,
--checkpoint-published recomputes them; one text forward is then taken off its time again. --skip-published leaves the
published computation out, and the figures that compare with it; other tuners, heads and routers than the published
ones do the same.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Cost, compare, timed
from benchmarks.published import Published, route_repeated
from benchmarks.report import device_name, emit, make_parser
from mdpr.artifacts import Features
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.model.routing import ROUTERS, AttentionRouter, Routed
from mdpr.model.towers import prompted_image_features
from mdpr.model.tuners import TUNERS
from mdpr.params import DIMENSIONS, TuneParams
from mdpr.training.losses import Objective

PACKAGES = ("torch", "open_clip_torch")
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
ADJECTIVES = ("red", "small", "wild", "old", "wooden", "spotted", "northern", "glass", "striped", "giant")
NOUNS = (
    *("dog", "bird", "boat", "lamp", "flower", "truck", "snake", "guitar", "fish", "bridge", "mushroom", "chair"),
    *("clock", "spider", "tower", "kettle", "monkey", "tractor", "butterfly", "piano"),
)
PARTS = ("", " head", " house", " with a long tail", " market", " of the forest", " box", " shop", " parade", " egg")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[100], help="numbers of classes")
    parser.add_argument("--batch", type=int, default=16, help="images per batch")
    parser.add_argument("--backbone", default="ViT-B-16", help="open_clip architecture; weights are random")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast, for all three")
    parser.add_argument("--context-tokens", type=int, default=16)
    parser.add_argument("--depth", type=int, default=9)
    parser.add_argument("--prompting", choices=TUNERS, default="maple", help="tuner")
    parser.add_argument("--head", choices=["text", "cosine"], default="text")
    parser.add_argument("--routing", choices=["on", "off"], default="on")
    parser.add_argument("--router", choices=ROUTERS, default="attention", help="paired_gate: no published computation")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--only", choices=["step", "routing", "eval"], nargs="+", default=["step", "routing", "eval"])
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: fair on a busy machine (CPU, OMP_NUM_THREADS=1)"
    )
    parser.add_argument("--checkpoint-published", action="store_true")
    parser.add_argument("--skip-published", action="store_true", help="only what compares with the floor: minutes less")
    arguments = parser.parse_args()
    chosen = (arguments.prompting, arguments.head, arguments.routing, arguments.router)
    arguments.skip_published |= chosen != ("maple", "text", "on", "attention")
    if arguments.routing == "off":
        arguments.only = [name for name in arguments.only if name != "routing"]
    logging.getLogger().setLevel(logging.ERROR)

    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    frozen = random_backbone(arguments.backbone, arguments.device)
    for classes in arguments.classes:
        bench = Bench(frozen, classes, arguments)
        for name in arguments.only:
            costs = BENCHES[name](bench)
            rows += [
                {
                    "what": name,
                    "classes": str(classes),
                    "computation": key,
                    "ms": cost.seconds * 1e3,
                    "MiB": cost.peak_mib,
                }
                for key, cost in costs.items()
            ]
            for key, ratio in RATIOS[name].items():
                if "published" in costs or "published" not in key:
                    figures[f"{key}_c{classes}"] = ratio(costs)
    table = [
        *rows,
        *({"what": name, "classes": "", "computation": "", "ms": v, "MiB": ""} for name, v in figures.items()),
    ]
    emit("speed", device_name(arguments.device), PACKAGES, figures, rows, arguments.json, table)


def random_backbone(architecture: str, device: str) -> Backbone:
    """A frozen model with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    clip = open_clip.create_model(architecture, force_custom_text=True, device=device)
    return Backbone(clip, architecture, open_clip.get_tokenizer(architecture))


def class_names(classes: int) -> list[str]:
    """Names of one to six words, no two alike up to 2,000, a number behind them beyond."""
    names = []
    for index in range(classes):
        noun, rest = NOUNS[index % len(NOUNS)], index // len(NOUNS)
        adjective, rest = ADJECTIVES[rest % len(ADJECTIVES)], rest // len(ADJECTIVES)
        part, rest = PARTS[rest % len(PARTS)], rest // len(PARTS)
        names.append(f"{adjective} {noun}{part}{f' {rest}' if rest else ''}")
    return names


class Bench:
    """One model of C classes with everything the three computations need."""

    def __init__(self, frozen: Backbone, classes: int, arguments: argparse.Namespace) -> None:
        self.device, self.repeats, self.precision = arguments.device, arguments.repeats, arguments.precision
        self.skip_published, self.clock = arguments.skip_published, CLOCKS[arguments.clock]
        names = class_names(classes)
        params = TuneParams(
            prompting=arguments.prompting,
            head=arguments.head,
            head_init="names" if arguments.head == "text" else "sentences",  # no text tower, not even at the start
            routing=arguments.routing == "on",
            context_tokens=arguments.context_tokens,
            prompt_depth=arguments.depth,
            context_init="",
            router=arguments.router,
            fusion="mean",
        )
        generator = torch.Generator().manual_seed(0)
        width = frozen.embed_width
        sentences = F.normalize(torch.randn(classes, len(DIMENSIONS), width, generator=generator), dim=-1)
        features = Features(
            sentences.numpy(),
            sentences.mean(dim=1).numpy(),
            torch.rand(classes, len(DIMENSIONS), generator=generator).numpy(),
            frozen.fingerprint,
            "random",
        )
        self.model = MDPR(frozen, names, params, features)
        self.objective = Objective(self.model, np.full(classes, 10).tolist(), features)
        self.published = None if self.skip_published else Published(self.model, names, arguments.checkpoint_published)
        size = frozen.image_size_px
        self.image = torch.randn(arguments.batch, 3, size, size, generator=generator).to(self.device)
        self.label = torch.randint(classes, (arguments.batch,), generator=generator).to(self.device)
        self.parameters = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6)

    def compare(self, calls: dict[str, Callable[[], object]]) -> dict[str, Cost]:
        """The costs of `calls`, without the published one if it is skipped."""
        chosen = {name: call for name, call in calls.items() if not (name == "published" and self.skip_published)}
        return compare(chosen, self.device, self.repeats, self.clock)

    def run_published(self, *inputs: Tensor) -> Any:
        assert self.published is not None
        return self.published(*inputs)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def train_step(self, forward: Callable[..., Any]) -> None:
        with self.autocast():
            outputs = forward(self.image, self.label)
            loss = torch.stack(list(self.objective.terms(outputs, self.label, 1).values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def tower(self, adapted: bool) -> Tensor:
        prompts = self.model.tuner()
        with self.autocast():
            return prompted_image_features(
                self.model.backbone.visual, self.image, prompts.visual, adapters=prompts.adapters if adapted else ()
            )

    def tower_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        features_Bd = self.tower(adapted=True)
        if features_Bd.requires_grad:  # nothing of it learns with tune.prompting = none
            features_Bd.sum().backward()


def measure_step(bench: Bench) -> dict[str, Cost]:
    bench.model.train()
    costs = bench.compare(
        {
            "published": lambda: bench.train_step(bench.run_published),
            "ours": lambda: bench.train_step(bench.model),
            "floor": bench.tower_step,
        }
    )
    if bench.published is not None and bench.published.checkpoint_text:
        with torch.no_grad(), bench.autocast():
            again = timed(bench.published.text_features, bench.device, bench.clock)
        costs["published"] = Cost(costs["published"].seconds - again, costs["published"].peak_mib)
    return costs


def measure_routing(bench: Bench) -> dict[str, Cost]:
    """Forward and backward of the router only, float32, from image features to cosines, weights and true z."""
    router = bench.model.train().router
    assert router is not None
    sentences_CVd = bench.model.sentences_CVd
    image_Bd = F.normalize(torch.randn(len(bench.image), sentences_CVd.shape[-1], device=bench.device), dim=-1)

    def run(route: Callable[[Tensor], Any]) -> None:
        leaf = image_Bd.clone().requires_grad_()
        routed = route(leaf)
        (routed.similarity_BC.mean() + routed.weights_BCV.square().mean() + routed.true_Bd.square().mean()).backward()
        router.zero_grad(set_to_none=True)

    def published(x: Tensor) -> Routed:
        assert isinstance(router, AttentionRouter)
        return route_repeated(router, x, sentences_CVd, bench.label)

    return bench.compare(
        {
            "published": lambda: run(published),
            "ours": lambda: run(lambda x: router(x, router.table(sentences_CVd), bench.label)),
        }
    )


def measure_eval(bench: Bench) -> dict[str, Cost]:
    model = bench.model.eval()
    with torch.inference_mode():
        constants = model.constants()

    @torch.inference_mode()
    def ours() -> None:
        with bench.autocast():
            model(bench.image, constants=constants)

    @torch.inference_mode()
    def published() -> None:
        with bench.autocast():
            bench.run_published(bench.image)

    @torch.inference_mode()
    def floor() -> None:
        bench.tower(adapted=False)

    return bench.compare({"published": published, "ours": ours, "floor": floor})


BENCHES: dict[str, Callable[[Bench], dict[str, Cost]]] = {
    "step": measure_step,
    "routing": measure_routing,
    "eval": measure_eval,
}
# What -> figure -> costs -> value. *_vs_published: how many times ours is faster, or how much of their memory it needs.
RATIOS: dict[str, dict[str, Callable[[dict[str, Cost]], float]]] = {
    "step": {
        "step_over_floor": lambda costs: costs["ours"].seconds / costs["floor"].seconds,
        "step_vs_published": lambda costs: costs["published"].seconds / costs["ours"].seconds,
        "step_memory_vs_published": lambda costs: (
            max(0.0, costs["ours"].peak_mib - costs["floor"].peak_mib)
            / (costs["published"].peak_mib - costs["floor"].peak_mib)
        ),
    },
    "routing": {
        "routing_vs_published": lambda costs: costs["published"].seconds / costs["ours"].seconds,
        "routing_memory_vs_published": lambda costs: costs["ours"].peak_mib / costs["published"].peak_mib,
    },
    "eval": {"eval_vs_tower": lambda costs: costs["floor"].seconds / costs["ours"].seconds},
}

if __name__ == "__main__":
    main()
