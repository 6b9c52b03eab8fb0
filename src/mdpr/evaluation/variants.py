"""The same model in other circumstances: rows of their own beside the main result, never mixed into it.

    ablation   routing taken apart, without training again (`mdpr.evaluation.ablation`)
    robust     test-time ensembling, post-hoc adjustment (`mdpr.evaluation.robust`)

Shapes: B images in a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pandas as pd
from torch import Tensor

from mdpr.evaluation.intervals import gain_intervals
from mdpr.evaluation.metrics import GROUPS, score_branch
from mdpr.evaluation.predictions import final_branch
from mdpr.model.classifier import Outputs

FIGURES = (*GROUPS, "worst_class", "top1", "ece", "nll")
COLUMNS = ("variant", "kind", *FIGURES, "gain", "gain_low", "gain_high")


@dataclass(frozen=True)
class Seen:
    """What the main pass has of a batch: the images, every branch, and the debiased expert where the fusion has one."""

    image_B3HW: Tensor
    outputs: Outputs
    expert_BC: Tensor | None


class Variant(Protocol):
    """Other answers to a batch that the main pass has seen."""

    kind: str

    def log_probabilities(self, seen: Seen) -> dict[str, Tensor]:
        """(B, C) log-probabilities by name; the same names for every batch."""


def variant_table(
    predictions: pd.DataFrame, variants: pd.DataFrame, kinds: dict[str, str], shots: Sequence[str]
) -> pd.DataFrame:
    """One row a variant: its figures, and its class-balanced accuracy minus the model's own with a paired interval.

    `variants` has a variant's columns as `predictions` has a branch's; `kinds` maps its names to ablation or robust.
    Figures of groups that do not exist are empty.
    """
    final = final_branch(predictions)
    both = predictions.join(variants.drop(columns=["index", "label"]))
    own = score_branch(predictions, final, shots)["all"]
    rows = []
    for name, kind in kinds.items():
        figures = score_branch(variants, name, shots)
        low, high = gain_intervals(both, name, final, shots)["all"]
        shown = {key: figures[key] for key in FIGURES if key in figures}
        gain = {"gain": figures["all"] - own, "gain_low": low, "gain_high": high}
        rows.append({"variant": name, "kind": kind, **shown, **gain})
    return pd.DataFrame(rows, columns=COLUMNS)
