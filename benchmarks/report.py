"""The options and the output of every benchmark: a table for people, or one JSON object."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark's options, with --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def device_name(device: str = "cpu") -> str:
    """The GPU's own name, or the processor with the number of cores torch uses."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}, {torch.get_num_threads()} threads"


def interval_95(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of the mean (Student's t); NaN for a single value."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def emit(
    benchmark: str,
    device: str,
    packages: Sequence[str],
    figures: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    as_json: bool,
    table: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Print the result: as JSON `rows` (null if a figure could not be computed), for people `table` or the rows."""
    if as_json:
        content = {
            "benchmark": benchmark,
            "device": device,
            "versions": versions(*packages),
            "figures": {name: round(value, 6) for name, value in figures.items()},
            "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
        }
        print(json.dumps(content, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shown = rows if table is None else table
    grid = Table(title=f"{benchmark} ({device})")
    for column, value in shown[0].items():
        grid.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in shown:
        grid.add_row(*(_text(value) for value in row.values()))
    console.print(grid)
    if table is None:
        for name, value in figures.items():
            console.print(f"{name}: {value:.3f}")
    console.print(", ".join(f"{name} {number}" for name, number in versions(*packages).items()))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
