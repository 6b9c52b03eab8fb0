"""Several runs on the same test images, each against each: paired tests, corrected for their number.

    all, many, medium, few   difference of class-balanced accuracy on the same images, with the 95 % interval of
                             `mdpr.evaluation.uncertainty`; p is two-sided: the level at which the interval reaches 0
    images                   exact McNemar test on which images each run gets right (McNemar, 1947)

Runs may differ in their test images and in their classes: compared are the images that all of them answered, of the
classes that all of them know, without those that one of them was trained on. How many are left out is counted.

p values are corrected by Holm's method over all pairs and figures of one comparison (Holm, 1979), so that the chance
of one false alarm among all of them stays below 5 %.

Shapes: N test images.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from mdpr.artifacts import read_predictions, read_seen, read_table
from mdpr.errors import ArtifactError
from mdpr.evaluation.metrics import class_recall, group_means
from mdpr.evaluation.predictions import final_branch, is_right
from mdpr.evaluation.score_table import Interval, ScoreTable
from mdpr.evaluation.tables import check_label_set
from mdpr.evaluation.uncertainty import paired_differences

LEVEL = 0.05
IMAGES = "images"


@dataclass(frozen=True)
class Run:
    """A run's answers: labels (N,) and which of them are right (N,), in order of the test images' row.

    image_N    digests of the test images
    seen       digests of the images that its model was trained or chosen on
    """

    name: str
    label_N: np.ndarray
    right_N: np.ndarray
    classes: Sequence[str]
    shots: Sequence[str]
    image_N: np.ndarray
    seen: np.ndarray

    @property
    def accuracy(self) -> dict[str, float]:
        """Class-balanced accuracy of `all` and of each shot group."""
        answered_N = np.where(self.right_N, self.label_N, -1)
        return group_means(class_recall(self.label_N, answered_N, len(self.classes)), self.shots)


@dataclass(frozen=True)
class Difference:
    """second minus first on one figure, as fractions; single images have no interval, only a test."""

    first: str
    second: str
    figure: str
    difference: float
    interval: Interval | None
    p: float
    p_holm: float

    @property
    def significant(self) -> bool:
        return self.p_holm < LEVEL


def read_results(folder: Path, name: str) -> Run:
    """A folder evaluation/; raises `ArtifactError` if it is incomplete or does not fit itself."""
    predictions = read_predictions(folder)
    table = read_table(folder, "per_class.csv").sort_values("index")
    check_label_set(predictions, len(table))
    return Run(
        name=name,
        label_N=predictions["label"].to_numpy(),
        right_N=is_right(predictions, final_branch(predictions)),
        classes=[str(name) for name in table["class"]],
        shots=[str(shot) for shot in table["shot"]],
        image_N=predictions["image"].to_numpy(),
        seen=read_seen(folder, "evaluate"),
    )


def align(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """`runs` on the images that all answered, of the classes that all know, and none was trained on; lines on these.

    All have the images in one order, and the shot groups of the first run. Raises `ArtifactError` if nothing is left to
    compare.
    """
    first = runs[0]
    shared = [name for name in first.classes if all(name in run.classes for run in runs)]
    tables = [_by_image(run) for run in runs]
    both = pd.concat([table.add_suffix(f" {place}") for place, table in enumerate(tables)], axis=1, join="inner")
    name_n = both["class 0"]
    agreed_n = name_n.isin(shared)
    for place in range(1, len(runs)):
        agreed_n &= both[f"class {place}"] == name_n
    leaked_n = agreed_n & both.index.isin(np.concatenate([run.seen for run in runs]))
    notes = _notes(runs, shared, int(agreed_n.sum()), int(leaked_n.sum()))
    kept = both[agreed_n & ~leaked_n]
    if kept.empty:
        raise ArtifactError(f"no test image is left to compare: {'; '.join(notes) or 'the runs share none'}")
    label_n = kept["class 0"].map({name: index for index, name in enumerate(shared)}).to_numpy()
    shots = [first.shots[list(first.classes).index(name)] for name in shared]
    common: dict[str, Any] = {"image_N": kept.index.to_numpy(), "label_N": label_n, "classes": shared, "shots": shots}
    right = [kept[f"right {place}"].to_numpy(bool) for place in range(len(runs))]
    return [replace(run, **common, right_N=right_n) for run, right_n in zip(runs, right, strict=True)], notes


def _by_image(run: Run) -> pd.DataFrame:
    """Class and whether it was right, by the image's digest; of equal images the first."""
    names = np.asarray(run.classes, dtype=object)
    table = pd.DataFrame({"class": names[run.label_N], "right": run.right_N}, index=pd.Index(run.image_N))
    return table[~table.index.duplicated()]


def _notes(runs: Sequence[Run], shared: Sequence[str], common: int, leaked: int) -> list[str]:
    """Lines on the images that count."""
    notes = []
    if any(len(run.label_N) != common for run in runs):
        notes.append(f"{common} test images are common to all runs and of the same class in each")
    if any(len(run.classes) != len(shared) for run in runs):
        notes.append(f"{len(shared)} classes are known to all runs")
    if leaked:
        notes.append(f"{leaked} test images trained one of the runs and are left out")
    return notes


def compare(runs: Sequence[Run]) -> list[Difference]:
    """Every pair of `runs`, as `align` leaves them, on every figure, in order."""
    found: list[Difference] = []
    for first, second in itertools.combinations(runs, 2):
        shares = paired_differences(first.label_N, second.right_N, first.right_N, first.shots)
        first_accuracy, second_accuracy = first.accuracy, second.accuracy
        for group, share in shares.items():
            difference = second_accuracy[group] - first_accuracy[group]
            interval, p = share.bounds(LEVEL / 2), share.p_value()
            found.append(Difference(first.name, second.name, group, difference, interval, p, p))
        difference = float(second.right_N.mean() - first.right_N.mean())
        p = mcnemar_p(int((second.right_N & ~first.right_N).sum()), int((first.right_N & ~second.right_N).sum()))
        found.append(Difference(first.name, second.name, IMAGES, difference, None, p, p))
    corrected = holm([item.p for item in found])
    return [replace(item, p_holm=p) for item, p in zip(found, corrected, strict=True)]


def mcnemar_p(won: int, lost: int) -> float:
    """Exact McNemar test, two-sided: of the images that only one run gets right, is each run's share a half?"""
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected by Holm's step-down method, in the order given."""
    order = np.argsort(p_values, kind="stable")
    count = len(order)
    steps = [(count - rank) * p_values[index] for rank, index in enumerate(order)]
    corrected = np.empty(count)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(p) for p in corrected]


def score_table(runs: Sequence[Run]) -> ScoreTable:
    """Class-balanced accuracy, one row per run as `align` leaves it."""
    rows = {run.name: run.accuracy for run in runs}
    return ScoreTable(list(rows[runs[0].name]), rows)
