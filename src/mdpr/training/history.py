"""A row of the history, and which epoch of two is the better one. Pure functions. S steps, K terms of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Row = dict[str, float]


def mean_terms(terms: Sequence[Tensor], names: Sequence[str], images: int, batch_size: int) -> Row:
    """The mean over the images of an epoch of each weighted term, from its means (K,) over each step's batch."""
    size_S = torch.full((len(terms),), batch_size, dtype=torch.float64)
    size_S[-1] = images - batch_size * (len(terms) - 1)
    mean_K = (torch.stack(list(terms)).cpu().double() * (size_S / images)[:, None]).sum(dim=0)
    return dict(zip(names, mean_K.tolist(), strict=True))


def make_row(epoch: int, learning_rate: float, terms: Row, accuracy: Mapping[str, Mapping[str, float]]) -> Row:
    """epoch, learning_rate, loss, loss_{term} and val_{branch}_{group}."""
    row: Row = {"epoch": epoch, "learning_rate": learning_rate, "loss": sum(terms.values())}
    row |= {f"loss_{name}": value for name, value in terms.items()}
    return row | {f"val_{branch}_{group}": v for branch, groups in accuracy.items() for group, v in groups.items()}


def is_better(overall: Mapping[str, float], best: Mapping[str, float] | None, branch: str) -> bool:
    """Whether an epoch's accuracy by branch beats that of the best before it; of two equal ones the earlier stays.

    Judged by `branch`, by the base where there is no such branch (no router).
    """
    if best is None:
        return True
    return overall.get(branch, overall["base"]) > best.get(branch, best["base"])
