"""Everything that follows from the test set's answers: figures, intervals, tables for people, charts and DVC's plots.

`Results.write` puts them into evaluation/, `Results.read` takes them from there.

Shapes: N test images, C classes, V dimensions, A attributes of drawn pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from mdpr.artifacts import (
    SHOT_GROUPS,
    Biases,
    ClassInfo,
    Intervals,
    PictureSizes,
    RoutingCheck,
    display_names,
    read_biases,
    read_intervals,
    read_metrics,
    read_picture_sizes,
    read_predictions,
    read_routing_check,
    read_table,
    write_csv,
    write_json,
    write_predictions,
)
from mdpr.artifacts.truth import Truth
from mdpr.errors import ArtifactError
from mdpr.evaluation.metrics import class_recall, group_means, reliability, score, score_branch
from mdpr.evaluation.predictions import Predictions, final_branch, is_right, recorded_branches
from mdpr.evaluation.score_table import GROUPS, LEAST, MOST, Metrics
from mdpr.evaluation.uncertainty import RESAMPLINGS, biases, gain_intervals, intervals
from mdpr.params import DIMENSIONS

VARIANT_COLUMNS = ["variant", "kind", *GROUPS, "worst_class", "top1", "ece", "nll", "gain", "gain_low", "gain_high"]
SHOWN = "shown"  # the state of a dimension in a drawn picture (`mdpr.artifacts.truth`)


@dataclass(frozen=True)
class Results:
    """The scored test set. `scores`, `intervals` and `biases` are what the JSON files of evaluation/ hold."""

    classes: Sequence[ClassInfo]
    predictions: pd.DataFrame
    scores: Metrics
    intervals: Intervals
    biases: Biases
    per_class: pd.DataFrame
    reliability: pd.DataFrame
    routing: RoutingCheck
    variants: pd.DataFrame
    pictures: PictureSizes

    @classmethod
    def of(
        cls,
        predicted: Predictions,
        classes: Sequence[ClassInfo],
        rival_C: np.ndarray,
        log_prior_C: np.ndarray,
        pictures: PictureSizes,
        truth: Truth | None = None,
        resamplings: int = RESAMPLINGS,
    ) -> Results:
        """Score the answers of one pass. `rival_C` is the class each class is most confused with by the frozen model,
        `log_prior_C` the log of its estimated pre-training prior, `truth` is known of drawn pictures only.

        Raises `ArtifactError` if the predictions name a class that does not exist, or if there are none.
        """
        predictions = predicted.predictions
        check_label_set(predictions, len(classes))
        shots = [item.shot for item in classes]
        return cls(
            classes=classes,
            predictions=predictions,
            scores=score(predictions, shots, predicted.classwise_ece),
            intervals=intervals(predictions, shots, resamplings),
            biases=biases(predictions, [item.train_images for item in classes], log_prior_C, resamplings),
            per_class=per_class_table(predictions, classes, rival_C),
            reliability=reliability_table(predictions),
            routing=check_routing(predictions, predicted.variants, shots, truth),
            variants=variant_table(predictions, predicted.variants, predicted.kinds, shots),
            pictures=pictures,
        )

    def write(self, evaluation: Path) -> None:
        """The JSON files, predictions.parquet, and the tables that DVC's plots draw."""
        write_json(evaluation / "metrics.json", self.scores)
        write_json(evaluation / "intervals.json", self.intervals)
        write_json(evaluation / "biases.json", self.biases)
        write_json(evaluation / "routing.json", self.routing)
        write_json(evaluation / "pictures.json", self.pictures)
        write_predictions(evaluation, self.predictions)
        tables = {
            "per_class": self.per_class,
            "confusion": confusion_pairs(self.predictions, display_names(self.classes)),
            "reliability": self.reliability,
            "routing": routing_table(self.predictions, [item.shot for item in self.classes]),
            "variants": self.variants,
        }
        for name, table in tables.items():
            write_csv(evaluation / f"{name}.csv", table, float_format="%.6f")

    @classmethod
    def read(cls, evaluation: Path, classes: Sequence[ClassInfo]) -> Results:
        """The files of `write`, for these classes; raises `ArtifactError` if it is of others, or incomplete."""
        predictions, per_class = read_predictions(evaluation), read_table(evaluation, "per_class.csv")
        if [str(name) for name in per_class["class"]] != display_names(classes):
            raise ArtifactError(f"{evaluation} holds results of another label set: run evaluate again")
        check_label_set(predictions, len(classes))
        return cls(
            classes=classes,
            predictions=predictions,
            scores=read_metrics(evaluation),
            intervals=read_intervals(evaluation),
            biases=read_biases(evaluation),
            per_class=per_class,
            reliability=read_table(evaluation, "reliability.csv"),
            routing=read_routing_check(evaluation),
            variants=read_table(evaluation, "variants.csv"),
            pictures=read_picture_sizes(evaluation),
        )


def check_label_set(predictions: pd.DataFrame, class_count: int) -> None:
    """Raises `ArtifactError` if `predictions` is empty or has a label or an answer outside 0 .. C - 1."""
    if predictions.empty:
        raise ArtifactError("the test set has no image: prepare it with at least one")
    for column in ("label", *(name for name in predictions.columns if name.endswith("_top1"))):
        low, high = int(predictions[column].min()), int(predictions[column].max())
        if low < 0 or high >= class_count:
            outside = low if low < 0 else high
            raise ArtifactError(
                f"the predictions are for another label set: {column} has class {outside}, "
                f"there are {class_count} classes: run evaluate on this data"
            )


def per_class_table(predictions: pd.DataFrame, classes: Sequence[ClassInfo], rival_C: np.ndarray) -> pd.DataFrame:
    """One row per class: index, class, shot, train_images, test_images, rival, one accuracy per branch, gain,
    overconfidence.

    `gain` is fused - base; `overconfidence` the model's mean confidence on the class's images minus its accuracy on
    them: below 0 it is right more often than it says. A class without test images has empty accuracies. As in
    metrics.json, fused is always there and equals base if routing is off.
    """
    names = display_names(classes)
    label_N = predictions["label"].to_numpy()
    recall = {
        branch: class_recall(label_N, predictions[f"{branch}_top1"].to_numpy(), len(classes))
        for branch in recorded_branches(predictions)
    }
    final = final_branch(predictions)
    recall["fused"] = recall[final]
    confidence = predictions[f"{final}_probability"].astype("float64").groupby(predictions["label"]).mean()
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
            "overconfidence": confidence.reindex(range(len(classes))).to_numpy() - recall["fused"],
        }
    )


def confusion_pairs(predictions: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per test image: the names `actual` and `predicted`, as DVC's confusion template reads them."""
    name_C = np.asarray(names, dtype=object)
    return pd.DataFrame(
        {
            "actual": name_C[predictions["label"].to_numpy()],
            "predicted": name_C[predictions[f"{final_branch(predictions)}_top1"].to_numpy()],
        }
    )


def reliability_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """The bins of `mdpr.evaluation.metrics.reliability` of every branch, with a column `branch`."""
    return pd.concat(
        [
            reliability(predictions[f"{branch}_probability"].to_numpy(), is_right(predictions, branch)).assign(
                branch=branch
            )
            for branch in recorded_branches(predictions)
        ],
        ignore_index=True,
    )


def routing_table(predictions: pd.DataFrame, shots: Sequence[str]) -> pd.DataFrame:
    """`mean_routing` as rows dimension, shot, weight, and `row`, a name of its own for a chart."""
    rows = [
        {"dimension": dimension, "shot": shot, "weight": float(weight), "row": f"{dimension}, {shot}"}
        for shot, weight_V in mean_routing(predictions, shots).items()
        for dimension, weight in zip(DIMENSIONS, weight_V, strict=True)
    ]
    return pd.DataFrame(rows, columns=["dimension", "shot", "weight", "row"])


def mean_routing(predictions: pd.DataFrame, shots: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean routing weights (V,) over the test images of each shot group that has any; empty with routing off."""
    if "routing" not in predictions.columns:
        return {}
    routing_NV = np.stack(list(predictions["routing"]))
    shot_N = np.asarray(shots)[predictions["label"].to_numpy()]
    return {group: routing_NV[shot_N == group].mean(axis=0) for group in SHOT_GROUPS if (shot_N == group).any()}


def variant_table(
    predictions: pd.DataFrame, variants: pd.DataFrame, kinds: dict[str, str], shots: Sequence[str]
) -> pd.DataFrame:
    """One row per variant: `VARIANT_COLUMNS`, `gain` over the model's own class-balanced accuracy, its interval paired.

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
        gain = {"gain": figures["all"] - own, "gain_low": low, "gain_high": high}
        rows.append({"variant": name, "kind": kind, **figures, **gain})
    return pd.DataFrame(rows, columns=VARIANT_COLUMNS)


def check_routing(
    predictions: pd.DataFrame, variants: pd.DataFrame, shots: Sequence[str], truth: Truth | None
) -> RoutingCheck:
    """`variants` are the answers of the ablations; the deletion test needs both of its own among them."""
    deletion, interval = None, None
    if {f"{MOST}_top1", f"{LEAST}_top1"} <= set(variants.columns):
        kept, cut = (score_branch(variants, name, shots)["all"] for name in (LEAST, MOST))
        deletion, interval = kept - cut, gain_intervals(variants, LEAST, MOST, shots)["all"]
    found = {}
    if truth is not None and "true_routing" in predictions:
        found = faithfulness(np.stack(list(predictions["true_routing"])), truth.of("test"))
    oracle = {} if truth is None else oracle_accuracy(truth, "test", shots)
    return RoutingCheck(faithfulness=found, oracle=oracle, deletion=deletion, deletion_interval=interval)


def faithfulness(weights_NV: np.ndarray, pictures: pd.DataFrame) -> dict[str, float]:
    """For each dimension whose state is known, how well its routing weight separates pictures that show it from others.

    The figure is the area under the ROC curve: 0.5 if the weight says nothing, 1 if it is larger on every
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
    """Group -> accuracy (0..1) of an answer that knows which attributes are shown, and uses only these.

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
