"""prepared/truth.parquet and truth.json: what is known about drawn pictures. Real data has neither.

Only evaluation may read them: no module that tune needs imports this one (import-linter holds it), and training on a
folder without them gives the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mdpr.artifacts.formats import Format, write_json
from mdpr.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd

STATES = ("shown", "absent", "foreign")


class ClassTruth(Format):
    """A class: its value of each attribute, and its share of the named pictures that pre-training saw."""

    index: int = Field(ge=0)
    name: str
    values: dict[str, str]
    hidden_share: float = Field(gt=0, le=1)


class WorldTruth(Format):
    """truth.json. `dimensions`: the attributes that a dimension's sentences are about, if always the same."""

    format: Literal["mdpr-truth/1"] = "mdpr-truth/1"
    dimensions: dict[str, tuple[str, ...]]
    classes: tuple[ClassTruth, ...]


@dataclass(frozen=True)
class Truth:
    """The classes, and a table of pictures.

    A row of `pictures` has split, path and label; for each attribute ATTRIBUTE the value drawn (empty if it is
    absent) and ATTRIBUTE_state; for each dimension of `world.dimensions` its state. States are those of `STATES`; a
    dimension of several attributes is shown if any of them is.
    """

    world: WorldTruth
    pictures: pd.DataFrame

    def of(self, split: str) -> pd.DataFrame:
        """The pictures of a split of prepared/, in its order."""
        return self.pictures[self.pictures["split"] == split].reset_index(drop=True)


def write_truth(prepared: Path, truth: Truth) -> None:
    """truth.json and truth.parquet."""
    write_json(prepared / "truth.json", truth.world)
    truth.pictures.to_parquet(prepared / "truth.parquet", index=False)


def read_truth(prepared: Path) -> Truth | None:
    """The truth about a prepared data set, None if nothing is known; `ArtifactError` if half of it is missing."""
    import pandas as pd

    world, pictures = prepared / "truth.json", prepared / "truth.parquet"
    if not world.exists() and not pictures.exists():
        return None
    try:
        return Truth(WorldTruth.read(world), pd.read_parquet(pictures))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{pictures} cannot be read ({error}): rerun prepare") from None
