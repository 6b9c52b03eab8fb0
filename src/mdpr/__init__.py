"""Multi-dimensional dynamic prompt routing (MDPR) for vision-language models on long-tailed data."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__"]


def __getattr__(name: str) -> Any:
    """`mdpr.Classifier`, loaded on first use: `import mdpr` must not wait for torch."""
    if name == "Classifier":
        from mdpr.model.inference import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
