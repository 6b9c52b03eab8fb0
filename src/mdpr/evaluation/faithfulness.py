"""Whether routing believes what a picture shows: for drawn pictures, whose truth is known (`mdpr.artifacts.truth`).

Shapes: N pictures, C classes, V dimensions, A attributes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from mdpr.artifacts.truth import Truth
from mdpr.evaluation.metrics import group_means
from mdpr.params import DIMENSIONS

SHOWN = "shown"


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
