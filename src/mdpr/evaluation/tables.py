"""Tables for people and for DVC's plots: per class, and the confusion matrix.

Shapes: N test images, C classes, V dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mdpr.artifacts import SHOT_GROUPS, ClassInfo
from mdpr.evaluation.metrics import class_recall
from mdpr.evaluation.predictions import final_branch, recorded_branches


def display_names(classes: Sequence[ClassInfo]) -> list[str]:
    """A name a class that no other class has: repeated names get their disambiguation, or their index."""
    times = Counter(item.name for item in classes)
    return [
        item.name if times[item.name] == 1 else f"{item.name} ({item.disambiguation or item.index})" for item in classes
    ]


def per_class_table(predictions: pd.DataFrame, classes: Sequence[ClassInfo], rival_C: np.ndarray) -> pd.DataFrame:
    """One row a class: index, class, shot, train_images, test_images, rival, one accuracy a branch, gain.

    `gain` is fused - base. A class without test images has empty accuracies. As in metrics.json, fused is always
    there and equals base where routing is off.
    """
    names = display_names(classes)
    label_N = predictions["label"].to_numpy()
    recall = {
        branch: class_recall(label_N, predictions[f"{branch}_top1"].to_numpy(), len(classes))
        for branch in recorded_branches(predictions)
    }
    recall["fused"] = recall[final_branch(predictions)]
    return pd.DataFrame(
        {
            "index": [item.index for item in classes],
            "class": names,
            "shot": [item.shot for item in classes],
            "train_images": [item.train_images for item in classes],
            "test_images": np.bincount(label_N, minlength=len(classes)),
            "rival": [names[index] for index in rival_C],
            **{f"{branch}_accuracy": recall_C for branch, recall_C in recall.items()},
            "gain": recall["fused"] - recall["base"],
        }
    )


def confusion_pairs(predictions: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row a test image: the names `actual` and `predicted`, as DVC's confusion template reads them."""
    name_C = np.asarray(names, dtype=object)
    return pd.DataFrame(
        {
            "actual": name_C[predictions["label"].to_numpy()],
            "predicted": name_C[predictions[f"{final_branch(predictions)}_top1"].to_numpy()],
        }
    )


def confusion_block(predictions: pd.DataFrame, class_count: int, max_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes (K,) of the worst confusions, K = min(C, max_classes), and their row-normalised matrix (K, K).

    Classes enter pair by pair, from the largest share of a true class that went to one other class downwards. Rows
    are true classes and are normalised over all predictions, so a row of a block may sum to less than 1. The whole
    C x C matrix is never made: it would be half a gigabyte for 8,142 classes.
    """
    label = predictions["label"].rename("actual")
    predicted = predictions[f"{final_branch(predictions)}_top1"].rename("predicted")
    images_C = label.value_counts()
    share = pd.concat([label, predicted], axis=1).value_counts().rename("share").reset_index()
    share["share"] = share["share"] / share["actual"].map(images_C)
    worst = share[share["actual"] != share["predicted"]].sort_values(
        ["share", "actual", "predicted"], ascending=[False, True, True]
    )
    order = worst[["actual", "predicted"]].to_numpy().ravel().tolist() + list(range(class_count))
    class_K = np.sort(np.array(list(dict.fromkeys(order))[:max_classes], dtype=np.int64))
    matrix = share.pivot(index="actual", columns="predicted", values="share")
    return class_K, matrix.reindex(index=class_K, columns=class_K).fillna(0.0).to_numpy()


def mean_routing(predictions: pd.DataFrame, shots: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean routing weights (V,) over the test images of each shot group that has any; empty with routing off."""
    if "routing" not in predictions.columns:
        return {}
    routing_NV = np.stack(list(predictions["routing"]))
    shot_N = np.asarray(shots)[predictions["label"].to_numpy()]
    return {group: routing_NV[shot_N == group].mean(axis=0) for group in SHOT_GROUPS if (shot_N == group).any()}
