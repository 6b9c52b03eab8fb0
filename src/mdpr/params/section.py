"""What every section of params.yaml is built from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# The paper's five visual-semantic dimensions, in the order in which every (C, V, ...) tensor holds them.
DIMENSIONS = (
    "general_appearance",
    "fine_grained_appearance",
    "functionality",
    "contextual_information",
    "differential_features",
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of params.yaml. Frozen; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
