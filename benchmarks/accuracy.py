"""What routing gives: MaPLe with and without MDPR as published, on plain cross entropy and with logit adjustment, and
this project's defaults.

    python -m benchmarks.accuracy --seeds 5 [--json] [--only maple_ce mdpr_ce] [--set encode.normalize=false]

Every seed cuts its own long tail from the embedded pool, reads its own rivals and trains its own models, each
selected on validation and scored once on the complete test set (10,000 images). Accuracy is in points, the
class-balanced mean; gain_ce is MDPR minus MaPLe on plain cross entropy, ours_vs_zero_shot the defaults minus the frozen
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.seeds import BATCH_IMAGES, Ground, run_seeds, seed_parser, with_settings
from mdpr.evaluation.metrics import class_recall, group_means
from mdpr.images.loading import make_loader
from mdpr.params.tuning import PUBLISHED, PUBLISHED_METHOD
from mdpr.progress import track

# name -> settings of tune that differ from the defaults
MODELS: dict[str, dict[str, Any]] = {
    "maple_ce": {"base_loss": "ce", "routing": False},
    "mdpr_ce": PUBLISHED_METHOD,
    "published": PUBLISHED,
    "gla_ce": PUBLISHED_METHOD | {"fusion": "gla"},
    "maple_la": {"base_loss": "logit_adjusted", "routing": False},
    "mdpr_la": PUBLISHED_METHOD | {"base_loss": "logit_adjusted"},
    "ours": {},
}
DEFAULT = [name for name in MODELS if name not in ("published", "gla_ce")]
GROUPS = ("all", "many", "medium", "few")


def main() -> None:
    parser = seed_parser(__doc__, seeds=5)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=DEFAULT, help="these models")
    arguments = parser.parse_args()
    run_seeds("accuracy", arguments, partial(run_seed, names=arguments.only))


def run_seed(ground: Ground, names: Sequence[str]) -> dict[str, float]:
    """All figures of one seed, in points."""
    figures = {"zero_shot_all": 100 * zero_shot(ground)["all"]}
    for name in track(names, "models"):
        scores = ground.score(with_settings(ground.tune, MODELS[name]), ground.features)
        figures |= {f"{name}_{group}": scores[group] for group in GROUPS}
    if "ours" in names:
        figures["ours_vs_zero_shot_all"] = figures["ours_all"] - figures["zero_shot_all"]
    return figures | {
        f"gain_{loss}_{group}": figures[f"mdpr_{loss}_{group}"] - figures[f"maple_{loss}_{group}"]
        for loss in ("ce", "la")
        if {f"mdpr_{loss}", f"maple_{loss}"} <= set(names)
        for group in ("all", "few")
    }


@torch.no_grad()
def zero_shot(ground: Ground) -> dict[str, float]:
    """The frozen model's own class-balanced accuracy on the test set."""
    test, frozen = ground.table("test"), ground.frozen
    text_Cd = torch.as_tensor(ground.probe.text_Cd, device=frozen.device)
    predicted = [
        (frozen.encode_image(image_B3HW.to(frozen.device)) @ text_Cd.T).argmax(dim=1).cpu()
        for image_B3HW, _ in make_loader(test, BATCH_IMAGES)
    ]
    return group_means(class_recall(test.labels_N, torch.cat(predicted).numpy(), len(ground.shots)), ground.shots)


if __name__ == "__main__":
    main()
