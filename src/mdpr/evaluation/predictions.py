"""What the model said about each test image: the table that every figure of the evaluation is computed from.

One row a test image, in the order of test.parquet:

    index                       int64         row of test.parquet
    label                       int64         the image's class
    {branch}_top1               int64         the branch's best class
    {branch}_top5               list<int64>   its min(5, C) best classes, best first
    {branch}_probability        float32       of top1
    {branch}_true_probability   float32       of label
    routing                     list<float32> V weights that the image consulted for its fused top-1 class

A branch that does not exist has no columns. With routing off there is neither routed nor fused (fused would repeat
base) nor routing. Ties go to the lower class index.

Shapes: B images in a batch, C classes, V dimensions, k = min(5, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
import torch

from mdpr.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

# Every branch there may be, in the order of tables and charts, with the name people read.
BRANCHES = {
    "zero_shot": "Zero-shot (frozen CLIP)",
    "base": "Base (prompt tuner)",
    "routed": "Routed (knowledge)",
    "fused": "Fused (MDPR)",
}
TOP_K = 5


def recorded_branches(predictions: pd.DataFrame) -> list[str]:
    """The branches that `predictions` holds, in the order of `BRANCHES`."""
    return [branch for branch in BRANCHES if f"{branch}_top1" in predictions.columns]


def final_branch(predictions: pd.DataFrame) -> str:
    """The branch whose answer is the model's answer: fused, or base where routing is off."""
    return "fused" if "fused_top1" in predictions.columns else "base"


class PredictionRecorder:
    """Collects log-probabilities batch by batch and keeps what the table needs of them."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Tensor]] = []
        self._images = 0

    def add(self, label_B: Tensor, log_probability_BC: Mapping[str, Tensor], routing_BV: Tensor | None = None) -> None:
        """Append a batch: its labels, one tensor of log-probabilities a branch, and the routing weights if any.

        Raises `ArtifactError` where a branch's scores are not finite.
        """
        label_B = label_B.cpu()
        part = {"index": torch.arange(self._images, self._images + len(label_B)), "label": label_B}
        for branch, scores_BC in log_probability_BC.items():
            assert branch in BRANCHES, branch
            part |= _columns(branch, scores_BC.detach().float().cpu(), label_B, first_index=self._images)
        if routing_BV is not None:
            part["routing"] = routing_BV.detach().float().cpu()
        assert not self._parts or part.keys() == self._parts[0].keys(), "branches differ between batches"
        self._parts.append(part)
        self._images += len(label_B)

    def table(self) -> pd.DataFrame:
        """Everything added so far, with the columns listed at the top of this file."""
        assert self._parts, "no batch was added"
        columns = {key: torch.cat([part[key] for part in self._parts]).numpy() for key in self._parts[0]}
        return pd.DataFrame({key: list(array) if array.ndim > 1 else array for key, array in columns.items()})


def _columns(branch: str, scores_BC: Tensor, label_B: Tensor, first_index: int) -> dict[str, Tensor]:
    finite_B = torch.isfinite(scores_BC).all(dim=1)
    if not finite_B.all():
        index = first_index + int((~finite_B).nonzero()[0])
        raise ArtifactError(f"the {branch} scores of test image {index} are not finite: train the model again")
    top_Bk = top_classes(scores_BC, TOP_K)
    return {
        f"{branch}_top1": top_Bk[:, 0],
        f"{branch}_top5": top_Bk,
        f"{branch}_probability": scores_BC.gather(1, top_Bk[:, :1])[:, 0].exp(),
        f"{branch}_true_probability": scores_BC.gather(1, label_B[:, None])[:, 0].exp(),
    }


def top_classes(scores_BC: Tensor, k: int) -> Tensor:
    """The min(k, C) best classes of each row, best first, (B, k) int64; ties go to the lower index.

    k passes of argmax: `topk` leaves the order of ties open, and a stable sort of all C costs more.
    """
    rest_BC = scores_BC.clone()
    best = []
    for _ in range(min(k, scores_BC.shape[1])):
        best.append(rest_BC.argmax(dim=1, keepdim=True))
        rest_BC.scatter_(1, best[-1], -torch.inf)
    return torch.cat(best, dim=1)
