"""Test images of the tail, right and wrong, with the knowledge that each one consulted.

Shapes: V dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from mdpr.artifacts import SHOT_GROUPS, ClassInfo, display_names
from mdpr.artifacts.truth import Truth
from mdpr.evaluation.predictions import final_branch
from mdpr.evaluation.report.figure import data_uri
from mdpr.params import DIMENSIONS

THUMBNAIL_SIDE_PX = 160
LOSSLESS_SIDE_PX = 64  # up to this side PNG is small, and shows every pixel as the model saw it


@dataclass(frozen=True)
class GalleryItem:
    """One test image.

    `routing` (V weights) and `sentences` (V) are of the predicted class; empty without routing. `states` says whether a
    drawn picture shows each dimension: shown, absent or foreign (another class's); empty if that is not known.
    """

    index: int
    actual: str
    predicted: str
    correct: bool
    probability: float
    data_uri: str
    sentences: Sequence[str]
    routing: Sequence[float]
    states: Sequence[str] = ()


def pick_tail_images(predictions: pd.DataFrame, classes: Sequence[ClassInfo], images: int) -> pd.DataFrame:
    """At most `images` rows of the rarest shot group that is tested, half of them wrong if there are enough.

    Of a model that routes, the first two are `most_unlike`. The others are chosen at random, not by how good they look,
    and spread evenly over the classes.
    """
    shot_N = predictions["label"].map({item.index: item.shot for item in classes})
    rarest = next(group for group in reversed(SHOT_GROUPS) if (shot_N == group).any())
    tail = predictions[shot_N == rarest].sample(frac=1, random_state=0)
    correct = tail[f"{final_branch(predictions)}_top1"] == tail["label"]
    wrong, right = _one_class_after_another(tail[~correct]), _one_class_after_another(tail[correct])
    if "routing" in predictions:
        unlike = most_unlike(right)
        right = pd.concat([unlike, right.drop(unlike.index)])
    wrong_images = min(len(wrong), max(images // 2, images - len(right)))
    return pd.concat([right.head(images - wrong_images), wrong.head(wrong_images)])


def most_unlike(right: pd.DataFrame) -> pd.DataFrame:
    """Two of the images that are right, of one class, whose routing weights differ most; no rows if no class has two.

    In each class the image whose weights are furthest from the class's mean, and the one furthest from that (sum of
    absolute differences): the same sentences, believed in another way.
    """
    found, largest = right.head(0), -1.0
    for _, rows in right.groupby("label"):
        weights_nV = np.stack(list(rows["routing"]))
        first = int(np.abs(weights_nV - weights_nV.mean(axis=0)).sum(axis=1).argmax())
        distance_n = np.abs(weights_nV - weights_nV[first]).sum(axis=1)
        if len(rows) > 1 and distance_n.max() > largest:
            found, largest = rows.iloc[[first, int(distance_n.argmax())]], float(distance_n.max())
    return found


def _one_class_after_another(rows: pd.DataFrame) -> pd.DataFrame:
    turn = rows.groupby("label").cumcount()
    return rows.assign(turn=turn).sort_values(["turn", "label"], kind="stable").drop(columns="turn")


def make_gallery(
    picked: pd.DataFrame,
    classes: Sequence[ClassInfo],
    sentences_CV: Sequence[Sequence[str]],
    images: Mapping[int, Image.Image],
    truth: Truth | None = None,
) -> list[GalleryItem]:
    """The rows of `pick_tail_images` with thumbnails; `images` holds the pictures by row of test.parquet."""
    pictures = None if truth is None else truth.of("test").reindex(columns=DIMENSIONS, fill_value="")
    names = display_names(classes)
    branch = final_branch(picked)
    items = []
    for row in picked.to_dict("records"):
        predicted = int(row[f"{branch}_top1"])
        routed = "routing" in row
        items.append(
            GalleryItem(
                index=int(row["index"]),
                actual=names[row["label"]],
                predicted=names[predicted],
                correct=predicted == row["label"],
                probability=float(row[f"{branch}_probability"]),
                data_uri=thumbnail_uri(images[int(row["index"])]),
                sentences=list(sentences_CV[predicted]) if routed else [],
                routing=np.asarray(row["routing"], dtype=float).tolist() if routed else [],
                states=() if pictures is None else pictures.iloc[int(row["index"])].tolist(),
            )
        )
    return items


def routing_pair(gallery: Sequence[GalleryItem]) -> Sequence[GalleryItem]:
    """The first two pictures if they show how routing differs between pictures of one class, else none."""
    pair = gallery[:2]
    alike = len(pair) == 2 and pair[0].actual == pair[1].actual
    return pair if alike and all(item.routing and item.correct for item in pair) else ()


def thumbnail_uri(image: Image.Image) -> str:
    """An image as a data: URI, at most `THUMBNAIL_SIDE_PX` on its longer side."""
    picture = image.convert("RGB")
    picture.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
    kind = "PNG" if max(picture.size) <= LOSSLESS_SIDE_PX else "JPEG"
    return data_uri(picture, kind, quality=85)
