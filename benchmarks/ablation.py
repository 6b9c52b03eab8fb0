"""The worth of each dimension of the knowledge: MDPR trained again without it.

    python -m benchmarks.ablation --seeds 3 [--json] [--only shuffled_sentences ...] [--set tune.epochs=4]

Every seed cuts its own long tail and trains one model a row: all five dimensions, each one left out, and the sentences
of other classes (shuffled). Each is selected on validation and scored once on the complete test set. Accuracy is in
points, the class-balanced mean of the fused answer; worth_DIMENSION is the model with all five minus the one without.
What the same sentences are worth to a model that is not trained again is in every evaluation (variants.csv).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.seeds import Ground, run_seeds, seed_parser
from mdpr.artifacts import Features
from mdpr.evaluation.ablations import KEPT, shuffled
from mdpr.evaluation.score_table import DROP, SHUFFLED
from mdpr.params import DIMENSIONS
from mdpr.progress import track

WHOLE = "all_dimensions"
ROWS = (WHOLE, *KEPT, SHUFFLED)
GROUPS = ("all", "few")


def main() -> None:
    parser = seed_parser(__doc__, seeds=3)
    parser.add_argument("--only", nargs="+", choices=ROWS[1:], default=ROWS[1:], help="these rows, beside the whole")
    arguments = parser.parse_args()
    run_seeds("ablation", arguments, partial(run_seed, names=[WHOLE, *arguments.only]))


def run_seed(ground: Ground, names: Sequence[str]) -> dict[str, float]:
    """All figures of one seed, in points."""
    tune = ground.tune.model_copy(update={"routing": True})
    figures: dict[str, float] = {}
    for name in track(names, "models"):
        scores = ground.score(tune, ground.features if name == WHOLE else without(ground.features, name))
        figures |= {f"{name}_{group}": scores[group] for group in GROUPS if group in scores}
    worth = {
        f"worth_{name.removeprefix(DROP)}_{group}": figures[f"{WHOLE}_{group}"] - figures[f"{name}_{group}"]
        for name in names[1:]
        for group in GROUPS
        if f"{name}_{group}" in figures
    }
    return figures | worth


def without(features: Features, name: str) -> Features:
    """`features` as the ablation `name` leaves them; what derives from the sentences follows them."""
    sentences_CVd, prior_CV = torch.as_tensor(features.sentences_CVd), torch.as_tensor(features.prior_CV)
    kept = KEPT.get(name, list(range(len(DIMENSIONS))))
    source_C = shuffled(len(sentences_CVd)) if name == SHUFFLED else slice(None)
    changed_CVd, prior_CV = sentences_CVd[source_C][:, kept], prior_CV[:, kept]
    return replace(
        features,
        sentences_CVd=changed_CVd.numpy(),
        summary_Cd=changed_CVd.mean(dim=1).numpy(),
        prior_CV=prior_CV.contiguous().numpy(),
    )


if __name__ == "__main__":
    main()
