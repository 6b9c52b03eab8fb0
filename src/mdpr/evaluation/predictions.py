"""The model's answer to each test image: the table that every figure of the evaluation is computed from.

One row per test image, in the order of test.parquet:

    index                       int64         row of test.parquet
    image                       int64         the image's digest (`mdpr.artifacts.image_digests`)
    label                       int64         the image's class
    {branch}_top1               int64         the branch's best class
    {branch}_top5               list<int64>   its min(5, C) best classes, best first
    {branch}_probability        float32       of top1
    {branch}_true_probability   float32       of label
    {baseline}_top1             int64         the best class of a baseline (`mdpr.evaluation.score_table.BASELINES`)
    routing                     list<float32> V weights that the image consulted for its fused top-1 class
    true_routing                list<float32> V weights that it consulted for its own class

A branch that does not exist has no columns. With routing off there is neither routed nor fused (fused would repeat
base) nor routing weights.

Ties: classes of equal score are ordered by a hash of (row, class). Over images each of them comes first equally often,
whatever its index, and the same image gets the same answer every time: C equal scores make an accuracy of about 1 / C,
not the share of class 0.

Shapes: B images in a batch, C classes, V dimensions, k = min(5, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mdpr.errors import ArtifactError
from mdpr.evaluation.score_table import BRANCHES

if TYPE_CHECKING:
    from torch import Tensor

TOP_K = 5


def recorded_branches(predictions: pd.DataFrame) -> list[str]:
    """The branches that `predictions` holds, in the order of `BRANCHES`."""
    return [branch for branch in BRANCHES if f"{branch}_top1" in predictions.columns]


def final_branch(predictions: pd.DataFrame) -> str:
    """The branch whose answer is the model's answer: fused, or base if routing is off."""
    return "fused" if "fused_top1" in predictions.columns else "base"


def is_right(predictions: pd.DataFrame, branch: str) -> np.ndarray:
    """Whether the branch's best class is the image's own, (N,) bool."""
    right_N: np.ndarray = predictions[f"{branch}_top1"].to_numpy() == predictions["label"].to_numpy()
    return right_N


@dataclass(frozen=True)
class Predictions:
    """The answers of one pass over the test set.

    predictions     the table above
    classwise_ece   of every recorded branch
    variants        a variant's columns as predictions has a branch's
    kinds           variant -> ablation or robust, in order
    """

    predictions: pd.DataFrame
    classwise_ece: Mapping[str, float]
    variants: pd.DataFrame
    kinds: dict[str, str]


class Columns:
    """Arrays by name that get longer batch by batch: twice as long whenever they are full.

    A small array per batch would keep the memory around it from being used again for the large ones of the next batch.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self.rows = 0

    def append(self, part: Mapping[str, np.ndarray]) -> None:
        """Rows of every column; the same columns in each batch."""
        assert not self.rows or part.keys() == self._arrays.keys(), "columns differ between batches"
        start, stop = self.rows, self.rows + len(next(iter(part.values())))
        for name, rows in part.items():
            array = self._arrays.setdefault(name, rows[:0])
            if len(array) < stop:
                longer = np.empty((max(stop, 2 * len(array)), *rows.shape[1:]), rows.dtype)
                longer[:start] = array[:start]
                array = self._arrays[name] = longer
            array[start:stop] = rows
        self.rows = stop

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything appended so far."""
        assert self.rows, "no batch was added"
        return {name: array[: self.rows] for name, array in self._arrays.items()}


class PredictionRecorder:
    """Collects log-probabilities batch by batch and keeps what the table needs of them."""

    def __init__(self) -> None:
        self._columns = Columns()

    @property
    def images(self) -> int:
        """The number of images so far."""
        return self._columns.rows

    def add(
        self,
        label_B: Tensor,
        log_probability_BC: Mapping[str, Tensor],
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Append a batch: its labels, one tensor of log-probabilities per branch, and further columns as they are.

        A branch is one of `BRANCHES`, or a variant with a name of its own (see `mdpr.evaluation.ablations`). Raises
        `ArtifactError` if a branch's scores are not finite.
        """
        import torch  # the gate imports this module without torch

        label_B = label_B.cpu()
        part = {"index": self.images + torch.arange(len(label_B)), "label": label_B}
        for branch, scores_BC in log_probability_BC.items():
            part |= _columns(branch, scores_BC.detach().float().cpu(), label_B, part["index"])
        part |= {name: column.detach().cpu() for name, column in (columns or {}).items()}
        self._columns.append({name: column.numpy() for name, column in part.items()})

    def table(self) -> pd.DataFrame:
        """Everything added so far, with the columns listed at the top of this file."""
        columns = self._columns.arrays()
        return pd.DataFrame({name: list(array) if array.ndim > 1 else array for name, array in columns.items()})


def _columns(branch: str, scores_BC: Tensor, label_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
    import torch

    finite_B = torch.isfinite(scores_BC.sum(dim=1))
    if not finite_B.all():
        index = int(index_B[~finite_B][0])
        raise ArtifactError(f"the {branch} scores of test image {index} are not finite: train the model again")
    top_Bk = top_classes(scores_BC, TOP_K, index_B)
    return {
        f"{branch}_top1": top_Bk[:, 0],
        f"{branch}_top5": top_Bk,
        f"{branch}_probability": scores_BC.gather(1, top_Bk[:, :1])[:, 0].exp(),
        f"{branch}_true_probability": scores_BC.gather(1, label_B[:, None])[:, 0].exp(),
    }


def top_classes(scores_BC: Tensor, k: int, index_B: Tensor) -> Tensor:
    """The min(k, C) best classes of each row, best first, (B, k) int64; `index_B` are the rows' image numbers.

    Ties are ordered by a hash of image and class (see above).
    """
    import torch

    classes = scores_BC.shape[1]
    k = min(k, classes)
    best = scores_BC.topk(min(k + 1, classes))  # one more: a tie across the cut matters too
    top_Bk = best.indices[:, :k].clone()
    for row in (best.values[:, 1:] == best.values[:, :-1]).any(dim=1).nonzero()[:, 0].tolist():
        turn_C = _hash(int(index_B[row]), np.arange(classes, dtype=np.uint64))
        order = np.lexsort((turn_C, -scores_BC[row].numpy()))
        top_Bk[row] = torch.from_numpy(order[:k].copy())
    return top_Bk


def _hash(index: int, class_C: np.ndarray) -> np.ndarray:
    """splitmix64 of (image, class): Steele, Lea and Flood, OOPSLA 2014."""
    mixed = class_C + np.uint64(((index + 1) * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
