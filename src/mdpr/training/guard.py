"""The guard against a loss that is no longer a number. S steps, K terms of the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdpr.errors import Diverged


def check_terms(terms: Sequence[Tensor], names: Sequence[str], *, epoch: int, start: int) -> None:
    """Raise `Diverged` at the first of an epoch's steps from `start`, and its first term, that is not finite.

    `terms` holds the values (K,) of every step of the epoch so far.
    """
    value_SK = torch.stack(list(terms[start:]))
    bad = (~value_SK.isfinite()).nonzero().tolist()
    if bad:
        step, term = bad[0]
        raise Diverged(
            f"the loss term {names[term]} is {value_SK[step][term].item()} at step {start + step} of epoch "
            f"{epoch + 1}: lower tune.learning_rate, or tune.precision = fp32"
        )
