"""Everything that follows from the test set's answers: figures, intervals, tables for people, charts and DVC's plots.

`Results.write` puts them into evaluation/, `Results.read` takes them from there.

Shapes: N test images, C classes, V dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mdpr.artifacts import (
    SHOT_GROUPS,
    Biases,
    ClassInfo,
    Intervals,
    PictureSizes,
    display_names,
    read_biases,
    read_intervals,
    read_metrics,
    read_picture_sizes,
    read_predictions,
    read_table,
    write_csv,
    write_json,
    write_predictions,
)
from mdpr.artifacts.truth import Truth
from mdpr.errors import ArtifactError
from mdpr.evaluation.ablations import COLUMNS, variant_table
from mdpr.evaluation.faithfulness import RoutingCheck, check_routing, read_routing_check
from mdpr.evaluation.metrics import class_recall, reliability, score
from mdpr.evaluation.predictions import Predictions, final_branch, recorded_branches
from mdpr.evaluation.uncertainty import RESAMPLINGS, biases, intervals
from mdpr.params import DIMENSIONS


@dataclass(frozen=True)
class Results:
    """The scored test set. `scores`, `intervals` and `biases` are what the JSON files of evaluation/ hold."""

    classes: Sequence[ClassInfo]
    predictions: pd.DataFrame
    scores: Mapping[str, Mapping[str, float]]
    intervals: Intervals
    biases: Biases
    per_class: pd.DataFrame
    reliability: pd.DataFrame
    routing: RoutingCheck
    variants: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))
    pictures: PictureSizes | None = None

    @classmethod
    def of(
        cls,
        predicted: Predictions,
        classes: Sequence[ClassInfo],
        rival_C: np.ndarray,
        log_prior_C: np.ndarray,
        resamplings: int = RESAMPLINGS,
        truth: Truth | None = None,
        pictures: PictureSizes | None = None,
    ) -> Results:
        """Score what one pass gave. `rival_C` is the class each class is most confused with by the frozen model,
        `log_prior_C` the log of its estimated pre-training prior, `truth` is known of drawn pictures only.

        Raises `ArtifactError` where the predictions name a class that is not there, or there is none of them.
        """
        predictions = predicted.predictions
        check_label_set(predictions, len(classes))
        shots = [item.shot for item in classes]
        variants = predicted.variants
        return cls(
            classes=classes,
            predictions=predictions,
            scores=score(predictions, shots, predicted.classwise_ece),
            intervals=intervals(predictions, shots, resamplings),
            biases=biases(predictions, [item.train_images for item in classes], log_prior_C, resamplings),
            per_class=per_class_table(predictions, classes, rival_C),
            reliability=reliability_table(predictions),
            routing=check_routing(predictions, variants, shots, truth),
            pictures=pictures,
            **({} if variants is None else {"variants": variant_table(predictions, variants, predicted.kinds, shots)}),
        )

    def write(self, evaluation: Path) -> None:
        """The JSON files, predictions.parquet, and the tables that DVC's plots draw."""
        write_json(evaluation / "metrics.json", self.scores)
        write_json(evaluation / "intervals.json", self.intervals)
        write_json(evaluation / "biases.json", self.biases)
        write_json(evaluation / "routing.json", self.routing)
        if self.pictures:
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
        """What `write` wrote, for these classes; raises `ArtifactError` where it is of other ones or incomplete."""
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
    """Raises `ArtifactError` where `predictions` is empty or has a label or an answer outside 0 .. C - 1."""
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
    """One row a class: index, class, shot, train_images, test_images, rival, one accuracy a branch, gain,
    overconfidence.

    `gain` is fused - base; `overconfidence` the model's mean confidence on the class's images minus its accuracy on
    them: below 0 it is right more often than it says. A class without test images has empty accuracies. As in
    metrics.json, fused is always there and equals base where routing is off.
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
    inside = share[share["actual"].isin(class_K) & share["predicted"].isin(class_K)]
    matrix = inside.pivot(index="actual", columns="predicted", values="share")
    return class_K, matrix.reindex(index=class_K, columns=class_K).fillna(0.0).to_numpy()


def worst_confusions(predictions: pd.DataFrame, names: Sequence[str], most: int) -> pd.DataFrame:
    """The `most` largest confusions: actual, predicted, images, share of the true class's images."""
    label = predictions["label"].rename("actual")
    predicted = predictions[f"{final_branch(predictions)}_top1"].rename("predicted")
    pairs = pd.concat([label, predicted], axis=1).value_counts().rename("images").reset_index()
    pairs["share"] = pairs["images"] / pairs["actual"].map(label.value_counts())
    wrong = pairs[pairs["actual"] != pairs["predicted"]]
    wrong = wrong.sort_values(["share", "images", "actual", "predicted"], ascending=[False, False, True, True])
    name_C = np.asarray(names, dtype=object)
    return wrong.head(most).assign(
        actual=lambda table: name_C[table["actual"]], predicted=lambda table: name_C[table["predicted"]]
    )


def confusion_density(predictions: pd.DataFrame, order_C: np.ndarray, side: int) -> np.ndarray:
    """The whole row-normalised matrix on at most `side` x `side` cells, a cell the mean over its true classes of the
    share that went to its predicted classes; classes in the order `order_C`. Rows of untested classes are NaN."""
    classes = len(order_C)
    cells = min(side, classes)
    cell_C = np.empty(classes, dtype=np.int64)
    cell_C[order_C] = np.arange(classes) * cells // classes
    label_N = predictions["label"].to_numpy()
    predicted_N = predictions[f"{final_branch(predictions)}_top1"].to_numpy()
    image_C = np.bincount(label_N, minlength=classes)
    flat_N = cell_C[label_N] * cells + cell_C[predicted_N]
    total = np.bincount(flat_N, weights=1 / image_C[label_N], minlength=cells * cells).reshape(cells, cells)
    tested = np.bincount(cell_C, weights=image_C > 0, minlength=cells)[:, None]
    return np.divide(total, tested, out=np.full_like(total, np.nan), where=tested > 0)


def reliability_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """The bins of `mdpr.evaluation.metrics.reliability` of every branch, with a column `branch`."""
    label_N = predictions["label"].to_numpy()
    return pd.concat(
        [
            reliability(
                predictions[f"{branch}_probability"].to_numpy(), predictions[f"{branch}_top1"].to_numpy() == label_N
            ).assign(branch=branch)
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
