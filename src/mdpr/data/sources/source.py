"""What every source gives, and what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdpr.data.class_list import ClassName
from mdpr.data.faults import Faults
from mdpr.data.splits import SourceSplit
from mdpr.errors import DataError
from mdpr.params import PrepareParams


@dataclass(frozen=True)
class Source:
    """A data set as it is found, before any cut.

    `val` and `test` are None where the source has none: they are then taken from the pool.
    """

    classes: tuple[ClassName, ...]
    pool: SourceSplit
    val: SourceSplit | None
    test: SourceSplit | None


@dataclass(frozen=True)
class Place:
    """Where a source looks: its folder, the folder that listed paths start from, and how it takes bad rows."""

    root: Path
    image_root: Path
    hub_name: str
    faults: Faults

    @classmethod
    def of(cls, params: PrepareParams, root: Path | None = None) -> Place:
        """The place that `params` name, or `root` with their other settings."""
        root = root or Path(params.root)
        faults = Faults(root, skip_bad=params.skip_bad)
        return cls(root, Path(params.image_root or root), params.hub_name, faults)


def distinct_by_case(names: Sequence[str], where: Path) -> None:
    """Raises `DataError` where two class names are the same but for upper and lower case."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{where}: the classes {other!r} and {name!r} differ by case alone: merge or rename one")
