"""Several runs on the same test images, each against each: paired tests, corrected for their number.

    all, many, medium, few   difference of class-balanced accuracy on the same images, with the 95 % interval of
                             `mdpr.evaluation.uncertainty`; p is two-sided: the level at which the interval reaches 0
    images                   exact McNemar test on which images each run gets right (McNemar, 1947)

p values are corrected by Holm's method over all pairs and figures of one comparison (Holm, 1979), so that the chance
of one false alarm among all of them stays below 5 %.

Shapes: N test images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from mdpr.artifacts import TEST_DIGEST, read_lineage, read_predictions, read_table
from mdpr.errors import ArtifactError
from mdpr.evaluation.metrics import class_recall, group_means
from mdpr.evaluation.predictions import final_branch
from mdpr.evaluation.score_table import ScoreTable
from mdpr.evaluation.tables import check_label_set
from mdpr.evaluation.uncertainty import paired_differences

LEVEL = 0.05
IMAGES = "images"


@dataclass(frozen=True)
class Run:
    """A run's answers: labels (N,) and which of them are right (N,), in order of the test images' row."""

    name: str
    label_N: np.ndarray
    right_N: np.ndarray
    accuracy: Mapping[str, float]
    classes: Sequence[str]
    shots: Sequence[str]
    test_sha256: str | None


@dataclass(frozen=True)
class Difference:
    """second minus first on one figure, as fractions; single images have no interval, only a test."""

    first: str
    second: str
    figure: str
    difference: float
    interval: tuple[float, float] | None
    p: float
    p_holm: float

    @property
    def significant(self) -> bool:
        return self.p_holm < LEVEL


def read_results(folder: Path, name: str) -> Run:
    """A folder evaluation/; raises `ArtifactError` where it is incomplete or does not fit itself."""
    predictions, table = read_predictions(folder), read_table(folder, "per_class.csv")
    missing = [column for column in ("index", "class", "shot") if column not in table.columns]
    if missing:
        raise ArtifactError(f"{folder / 'per_class.csv'} has no column {missing[0]}: run evaluate again")
    table = table.sort_values("index")
    check_label_set(predictions, len(table))
    predictions = predictions.sort_values("index")
    label_N = predictions["label"].to_numpy()
    top1_N = predictions[f"{final_branch(predictions)}_top1"].to_numpy()
    shots = [str(shot) for shot in table["shot"]]
    return Run(
        name=name,
        label_N=label_N,
        right_N=top1_N == label_N,
        accuracy=group_means(class_recall(label_N, top1_N, len(table)), shots),
        classes=[str(name) for name in table["class"]],
        shots=shots,
        test_sha256=read_lineage(folder).get(TEST_DIGEST),
    )


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises `ArtifactError` where runs differ in their label set or their test images; shot groups are the first's."""
    first = runs[0]
    for other in runs[1:]:
        if list(other.classes) != list(first.classes):
            raise ArtifactError(f"{other.name} knows other classes than {first.name}: compare runs of one label set")
        same_labels = np.array_equal(other.label_N, first.label_N)
        if not same_labels or other.test_sha256 != first.test_sha256:
            raise ArtifactError(
                f"{other.name} was scored on other test images than {first.name}: evaluate both on the same test split"
            )


def compare(runs: Sequence[Run]) -> list[Difference]:
    """Every pair of `runs` on every figure, in order; raises as `check_comparable` does."""
    check_comparable(runs)
    found: list[Difference] = []
    for first, second in itertools.combinations(runs, 2):
        shares = paired_differences(first.label_N, second.right_N, first.right_N, first.shots)
        first_accuracy, second_accuracy = (_accuracy(run, first.shots) for run in (first, second))
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
    """Exact McNemar test, two-sided: of the images that one run alone gets right, is each run's share a half?"""
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
    """Class-balanced accuracy, one row per run; the groups are the first run's."""
    rows = {run.name: _accuracy(run, runs[0].shots) for run in runs}
    return ScoreTable(list(rows[runs[0].name]), rows)


def _accuracy(run: Run, shots: Sequence[str]) -> dict[str, float]:
    answered = np.where(run.right_N, run.label_N, -1)
    return group_means(class_recall(run.label_N, answered, len(shots)), shots)
