"""Whether routing can be trusted. routing.json holds the answer, as far as the data set allows one.

For drawn pictures, whose truth is known (`mdpr.artifacts.truth`): does the routing weight tell what a picture shows?
For all: does it cost more to leave out the sentence that counted most than the one that counted least?

Shapes: N pictures, C classes, V dimensions, A attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from mdpr.artifacts import Format, read_json
from mdpr.artifacts.formats import parse
from mdpr.artifacts.truth import Truth
from mdpr.evaluation.ablations import LEAST, MOST
from mdpr.evaluation.metrics import group_means, score_branch
from mdpr.evaluation.uncertainty import gain_intervals
from mdpr.params import DIMENSIONS

SHOWN = "shown"


class RoutingCheck(Format):
    """routing.json. Fractions; None where a part cannot be had.

    faithfulness    dimension -> AUC, see `faithfulness`; empty without truth
    oracle          shot group -> accuracy, see `oracle_accuracy`; empty without truth
    deletion        accuracy without the least weighted sentence minus that without the most weighted one
    """

    format: Literal["mdpr-routing/1"] = "mdpr-routing/1"
    faithfulness: dict[str, float]
    oracle: dict[str, float]
    deletion: float | None
    deletion_interval: tuple[float, float] | None


def check_routing(
    predictions: pd.DataFrame, variants: pd.DataFrame | None, shots: Sequence[str], truth: Truth | None
) -> RoutingCheck:
    """`variants` are the answers of the ablations; the deletion test needs both of its own among them."""
    deletion, interval = None, None
    if variants is not None and {f"{MOST}_top1", f"{LEAST}_top1"} <= set(variants.columns):
        kept, cut = (score_branch(variants, name, shots)["all"] for name in (LEAST, MOST))
        deletion, interval = kept - cut, gain_intervals(variants, LEAST, MOST, shots)["all"]
    found = {}
    if truth is not None and "true_routing" in predictions:
        found = faithfulness(np.stack(list(predictions["true_routing"])), truth.of("test"))
    oracle = {} if truth is None else oracle_accuracy(truth, "test", shots)
    return RoutingCheck(faithfulness=found, oracle=oracle, deletion=deletion, deletion_interval=interval)


def read_routing_check(evaluation: Path) -> RoutingCheck:
    path = evaluation / "routing.json"
    return parse(path, RoutingCheck, read_json(path))


def faithfulness(weights_NV: np.ndarray, pictures: pd.DataFrame) -> dict[str, float]:
    """For each dimension whose state is known, how well its routing weight tells pictures that show it from others.

    The figure is the area under the ROC curve: 0.5 where the weight says nothing, 1 where it is larger on every
    picture that shows the dimension. weights_NV are those of each picture's true class; `pictures` are the same
    pictures in `Truth.pictures`. A dimension that is shown everywhere or nowhere is left out.
    """
    return {
        dimension: float(roc_auc_score(is_shown_N, weights_NV[:, index]))
        for index, dimension in enumerate(DIMENSIONS)
        if dimension in pictures
        and (is_shown_N := pictures[dimension].to_numpy() == SHOWN).any()
        and not is_shown_N.all()
    }


def oracle_accuracy(truth: Truth, split: str, shots: Sequence[str]) -> dict[str, float]:
    """Group -> accuracy (0..1) of an answer that knows which attributes are shown, and believes these alone.

    It names the class that has most of the values shown; of equally good ones each at even odds.
    """
    pictures = truth.of(split)
    attributes = list(truth.world.classes[0].values)
    value_CA = np.array([[item.values[attribute] for attribute in attributes] for item in truth.world.classes])
    drawn_NA = pictures[attributes].to_numpy()
    is_shown_NA = pictures[[f"{attribute}_state" for attribute in attributes]].to_numpy() == SHOWN
    agree_NC = ((drawn_NA[:, None] == value_CA[None]) & is_shown_NA[:, None]).sum(axis=2)
    is_best_NC = agree_NC == agree_NC.max(axis=1, keepdims=True)
    label_N = pictures["label"].to_numpy()
    chance_N = is_best_NC[np.arange(len(label_N)), label_N] / is_best_NC.sum(axis=1)
    images_C = np.bincount(label_N, minlength=len(value_CA))
    recall_C = np.bincount(label_N, weights=chance_N, minlength=len(value_CA)) / images_C
    return group_means(recall_C, shots)
