"""Captions measured from each picture of pre-training, and sentences of what most pictures of a class show.

captions.yaml says the same of all pictures of a class: trained on it only, the text tower maps the five sentences of
a class onto each other. Here a few lines of numpy measure what each picture shows: outline, tone, surface, sleeves,
heel. A value between two thresholds is not said, nor the sleeves of a shoe. docs/benchmarks.md, knowledge, compares.

N pictures of 28 x 28 grey pixels (h rows, w columns), B in a batch, A attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.embedded.fashion_mnist import CLASS_NAMES

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]
Labels = NDArray[np.int64]

NOTHING = -1  # a value that is not said, a class that is not named
FOREGROUND = 20  # grey levels above this are no background
TOPS = ("t-shirt", "pullover", "dress", "coat", "shirt")
SHOES = ("sandal", "sneaker", "ankle boot")
ASKED_OF = {"front": TOPS, "sleeves": TOPS, "hem": TOPS, "heel": SHOES, "legs": ("trouser",)}  # the others of all
PHRASES: dict[str, tuple[str, ...]] = {
    "outline": ("a narrow outline", "a wide outline", "an outline from side to side of the picture"),
    "height": ("a low and flat shape", "a shape of medium height", "a tall shape from top to bottom"),
    "fill": ("an open shape with holes", "a solid closed shape"),
    "tone": ("a dark tone", "a bright tone"),
    "surface": ("a plain even surface", "a busy patterned surface"),
    "front": ("an unbroken front", "a line down the middle"),
    "sleeves": ("no sleeves", "short sleeves", "long sleeves"),
    "heel": ("a flat sole", "a high heel"),
    "legs": ("two legs with a gap",),
    "hem": ("a hem that flares out", "a body that is narrow at the hem"),
    "balance": ("two equal halves", "two unequal halves"),
}
ATTRIBUTES = tuple(PHRASES)
SPEAKS_OF = {
    "general_appearance": ("outline", "height"),
    "fine_grained_appearance": ("surface", "tone", "front"),
    "functionality": ("sleeves", "heel", "legs", "fill"),
    "contextual_information": ("balance", "hem"),
}
TYPICAL_SHARE = 0.3  # of a class's pictures, from which a value is said of the class
FRAMES = ("a photo of {}.", "it has {}.", "the picture shows {}.", "{}.", "something with {}.")
NAMED_FRAMES = ("a photo of a {name} with {}.", "a {name} has {}.", "the {name} shows {}.", "this {name} has {}.")
NAMED_SHARE = 0.5


@dataclass(frozen=True)
class Caption:
    """A caption and what it claims: a value per attribute and a class, `NOTHING` where it is silent."""

    text: str
    claim_A: Labels
    label: int


def measure(pixels_Nhw: NDArray[np.uint8], labels_N: Labels) -> Labels:
    """The value of each attribute (N, A): its place in `PHRASES`, or `NOTHING`."""
    grey_Nhw = pixels_Nhw.astype(np.float64)
    mask_Nhw = grey_Nhw > FOREGROUND
    area_N = np.maximum(mask_Nhw.sum((1, 2)), 1)
    width_N, height_N = mask_Nhw.any(1).sum(1), mask_Nhw.any(2).sum(1)
    middle_N = np.abs(grey_Nhw[:, 6:24, 13:15].mean(2) - grey_Nhw[:, 6:24, [11, 12, 15, 16]].mean(2)).mean(1)
    sides_Nhw = mask_Nhw[:, :, [*range(3, 8), *range(20, 25)]]
    upper_N, lower_N = sides_Nhw[:, 4:11].mean((1, 2)), sides_Nhw[:, 18:25].mean((1, 2))
    filled_Nh = mask_Nhw.sum(2)
    waist_N = filled_Nh[:, 12:16].mean(1) / np.maximum(filled_Nh[:, 22:27].mean(1), 1)
    unequal_N = np.abs(grey_Nhw - grey_Nhw[:, :, ::-1]).sum((1, 2)) / np.maximum(grey_Nhw.sum((1, 2)), 1)
    value_N = {
        "outline": np.select([width_N <= 15, width_N == 28, width_N >= 19], [0, 2, 1], NOTHING),
        "height": np.select([height_N <= 15, height_N == 28, (height_N >= 17) & (height_N <= 25)], [0, 2, 1], NOTHING),
        "fill": _below_or_above(area_N / np.maximum(width_N * height_N, 1), 0.58, 0.76),
        "tone": _below_or_above((grey_Nhw * mask_Nhw).sum((1, 2)) / area_N, 135, 178),
        "surface": _below_or_above((_mean_edge(grey_Nhw, mask_Nhw, 1) + _mean_edge(grey_Nhw, mask_Nhw, 2)) / 2, 22, 29),
        "front": _below_or_above(middle_N, 5, 14),
        "sleeves": np.select([lower_N > 0.55, upper_N < 0.2, (upper_N > 0.4) & (lower_N < 0.35)], [2, 0, 1], NOTHING),
        "heel": _below_or_above(_gap_below(mask_Nhw), 0.7, 1.4),
        "legs": np.where(middle_N > 45, 0, NOTHING),
        "hem": _below_or_above(waist_N, 0.95, 1.25),
        "balance": _below_or_above(unequal_N, 0.3, 0.7),
    }
    for attribute, names in ASKED_OF.items():
        value_N[attribute][~np.isin(labels_N, [CLASS_NAMES.index(name) for name in names])] = NOTHING
    return np.stack([value_N[attribute] for attribute in ATTRIBUTES], axis=1)


def _below_or_above(measured_N: Numbers, low: float, high: float) -> Labels:
    return np.select([measured_N < low, measured_N > high], [0, 1], NOTHING)


def _mean_edge(grey_Nhw: Numbers, mask_Nhw: Mask, axis: int) -> Numbers:
    """The mean difference between neighbouring pixels of the object, along an axis."""
    is_inside_Nhw = np.delete(mask_Nhw, 0, axis) & np.delete(mask_Nhw, -1, axis)
    total_N = (np.abs(np.diff(grey_Nhw, axis=axis)) * is_inside_Nhw).sum((1, 2))
    return np.asarray(total_N / np.maximum(is_inside_Nhw.sum((1, 2)), 1))


def _gap_below(mask_Nhw: Mask) -> Numbers:
    """The mean number of empty pixels between a shoe and the ground that it stands on."""
    ground_N = 27 - np.asarray(mask_Nhw.any(2))[:, ::-1].argmax(1)
    lowest_Nw = 27 - mask_Nhw[:, ::-1].argmax(1)
    is_used_Nw = mask_Nhw.any(1)
    gap_N = ((ground_N[:, None] - lowest_Nw) * is_used_Nw).sum(1)
    return np.asarray(gap_N / np.maximum(is_used_Nw.sum(1), 1))


def draw_caption(value_A: Labels, label: int, chance: np.random.Generator) -> Caption:
    """One to three things that the picture shows, with or without the name of its class."""
    said = chance.permutation(np.flatnonzero(value_A != NOTHING))[: chance.integers(1, 4)]
    claim_A = np.full(len(ATTRIBUTES), NOTHING)
    claim_A[said] = value_A[said]
    is_named = chance.random() < NAMED_SHARE
    frames = NAMED_FRAMES if is_named else FRAMES
    text = frames[chance.integers(len(frames))].format(_join(said, value_A), name=CLASS_NAMES[label])
    return Caption(text, claim_A, label if is_named else NOTHING)


def _join(attributes: Sequence[int] | Labels, value_A: Labels) -> str:
    return " and ".join(PHRASES[ATTRIBUTES[index]][value_A[index]] for index in attributes) or "a shape"


def fits(captions: Sequence[Caption], value_BA: Labels, label_B: Labels) -> Tensor:
    """Whether all that each caption claims is true of each picture: bool (B pictures, B captions)."""
    claim_BA = np.stack([caption.claim_A for caption in captions])
    named_B = np.array([caption.label for caption in captions])
    is_true_BB = np.logical_or(claim_BA == NOTHING, claim_BA == value_BA[:, None]).all(-1)
    return torch.from_numpy(is_true_BB & np.logical_or(named_B == NOTHING, named_B == label_B[:, None]))


def knowledge_base(present: dict[str, Any], value_NA: Labels, labels_N: Labels) -> dict[str, Any]:
    """`present` with sentences that say what is typical of a class's pictures, by these measurements only."""
    share = {name: _shares(value_NA[labels_N == label]) for label, name in enumerate(CLASS_NAMES)}
    typical = {
        name: np.array([int(np.argmax(one)) if max(one) > TYPICAL_SHARE else NOTHING for one in shares])
        for name, shares in share.items()
    }

    def sentence(name: str, attributes: Sequence[str]) -> str:
        said = [index for index in map(ATTRIBUTES.index, attributes) if typical[name][index] != NOTHING]
        return f"a {name} has {_join(said, typical[name])}."

    def difference(name: str, rival: str) -> str:
        more = [np.subtract(own, other) for own, other in zip(share[name], share[rival], strict=True)]
        most = max(range(len(more)), key=lambda index: more[index].max())
        return f"unlike a {rival}, a {name} has {PHRASES[ATTRIBUTES[most]][int(more[most].argmax())]}."

    classes = []
    for entry in present["classes"]:
        name = entry["name"]
        sentences = {dimension: sentence(name, attributes) for dimension, attributes in SPEAKS_OF.items()}
        sentences["differential_features"] = difference(name, entry["rival"])
        alternatives = {rival: difference(name, rival) for rival in entry["differential_alternatives"]}
        classes.append(entry | {"sentences": sentences, "differential_alternatives": alternatives})
    return present | {"classes": classes}


def _shares(value_nA: Labels) -> list[list[float]]:
    """attribute -> value -> share of the pictures."""
    return [
        [float((value_n == value).mean()) for value in range(len(PHRASES[name]))]
        for name, value_n in zip(ATTRIBUTES, value_nA.T, strict=True)
    ]
