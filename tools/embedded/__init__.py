"""How the embedded default was made: the Fashion-MNIST files, mdpr-tiny's weights, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mdpr.errors import MdprError


def run(action: Callable[[], None]) -> int:
    """Run a command's body; return its exit status: 0, or 2 after one line about what cannot be used."""
    try:
        action()
    except MdprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
