"""How often the bounds of class-balanced means hold: simulated from one image per class upwards.

    python -m benchmarks.coverage [--json] [--trials N]

The true chances of every class are known here. Scores: all classes alike, or spread by a beta distribution.
Differences: wins and losses of one model over another on the same images. false_promotion is how often the gate's bound
(one-sided) is above 0 for two models that are equally good.

Shapes: S trials, C classes, K outcomes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import beta

from benchmarks.report import make_parser
from mdpr.evaluation.uncertainty import LEVEL, class_balanced_share, share_bounds

CLASSES, IMAGES = (10, 100, 1000), (1, 2, 3, 5, 10, 50)
SPREADS = (None, 4.0, 0.8)  # None: all classes alike; else the sum of the beta's parameters
ACCURACIES = (0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
PAIRS = ((0.02, 0.02), (0.1, 0.1), (0.3, 0.3), (0.05, 0.0), (0.1, 0.02), (0.6, 0.1))  # share of wins, of losses
ALPHA = 0.05
COUNTS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Cell:
    """One setting: the share of intervals that hold, and how often the gate's lower bound is above the truth."""

    kind: str
    classes: int
    images: int
    spread: float | None
    chances: tuple[float, ...]
    coverage: float
    above: float

    @property
    def is_of_equal_models(self) -> bool:
        return self.kind == "difference" and self.chances[0] == self.chances[1]


def simulate(
    classes: Sequence[int] = CLASSES,
    images: Sequence[int] = IMAGES,
    spreads: Sequence[float | None] = SPREADS,
    trials: int = 2000,
    seed: int = 0,
) -> Iterator[Cell]:
    """Every combination of the arguments with every accuracy and every pair."""
    rng = np.random.default_rng(seed)
    for class_count in classes:
        for image_count in images:
            for spread in spreads:
                for accuracy in ACCURACIES:
                    p_C = _spread(accuracy, class_count, spread)
                    chance_CK, value_K = np.stack([p_C, 1 - p_C], axis=1), np.array([1.0, 0.0])
                    found = _measure(chance_CK, value_K, image_count, trials, rng)
                    yield Cell("score", class_count, image_count, spread, (accuracy,), *found)
                for pair in PAIRS:
                    wins_C, losses_C = (_spread(share, class_count, spread) for share in pair)
                    losses_C = rng.permutation(losses_C)
                    total_C = np.maximum(wins_C + losses_C, 1)
                    wins_C, losses_C = wins_C / total_C, losses_C / total_C
                    chance_CK = np.stack([wins_C, losses_C, 1 - wins_C - losses_C], axis=1).clip(0)
                    value_K = np.array([1.0, 0.0, 0.5])
                    yield Cell(
                        "difference",
                        class_count,
                        image_count,
                        spread,
                        pair,
                        *_measure(chance_CK, value_K, image_count, trials, rng),
                    )


def _spread(mean: float, classes: int, spread: float | None) -> np.ndarray:
    """A chance per class, (C,), of this mean: quantiles of the beta distribution."""
    if spread is None or not 0 < mean < 1:
        return np.full(classes, mean)
    quantile_C: np.ndarray = beta.ppf((np.arange(classes) + 0.5) / classes, mean * spread, (1 - mean) * spread)
    return quantile_C


def _measure(
    chance_CK: np.ndarray, value_K: np.ndarray, images: int, trials: int, rng: np.random.Generator
) -> tuple[float, float]:
    truth = float((chance_CK @ value_K).mean())
    held, above = 0, 0
    at_once = max(1, COUNTS_AT_ONCE // chance_CK.size)
    for start in range(0, trials, at_once):
        size = (min(at_once, trials - start), len(chance_CK))
        share_S, images_S = class_balanced_share(rng.multinomial(images, chance_CK, size=size), value_K)
        low_S, high_S = share_bounds(share_S, images_S, (1 - LEVEL) / 2)
        held += int(((low_S <= truth + 1e-12) & (high_S >= truth - 1e-12)).sum())
        above += int((share_bounds(share_S, images_S, ALPHA)[0] > truth + 1e-12).sum())
    return held / trials, above / trials


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args()
    cells = list(simulate(trials=options.trials))
    worst = min(cells, key=lambda cell: cell.coverage)
    equal = max((cell for cell in cells if cell.is_of_equal_models), key=lambda cell: cell.above)
    result = {
        "coverage_min": worst.coverage,
        "coverage_mean": float(np.mean([cell.coverage for cell in cells])),
        "false_promotion_max": equal.above,
        "false_promotion_mean": float(np.mean([cell.above for cell in cells if cell.is_of_equal_models])),
        "cells": len(cells),
        "trials": options.trials,
        "worst": [asdict(worst), asdict(equal)],
    }
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
