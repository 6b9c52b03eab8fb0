"""`mdpr compare`."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from mdpr.evaluation.comparison import Difference, Run

MLFLOW = "runs:/"


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN [RUN ...]")
@click.option("--resamplings", type=click.IntRange(100, 1_000_000), default=10_000, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(runs: tuple[str, ...], resamplings: int, as_json: bool) -> None:
    """Compare runs on the same test images: paired tests, corrected by Holm's method.

    A RUN is a folder that evaluate wrote, or an MLflow run as runs:/RUN_ID.
    """
    import json

    from mdpr.evaluation.comparison import compare, score_table

    if len(runs) < 2:
        raise click.UsageError("name at least two runs to compare")
    if len(set(runs)) < len(runs):
        raise click.UsageError("the same run is named twice")
    with tempfile.TemporaryDirectory() as scratch:
        read = [_read(name, Path(scratch) / str(index)) for index, name in enumerate(runs)]
    differences = compare(read, resamplings)
    if as_json:
        content = {
            "runs": [{"run": name, **figures} for name, figures in score_table(read).rows.items()],
            "differences": [{**asdict(item), "significant": item.significant} for item in differences],
        }
        click.echo(json.dumps(content, allow_nan=False))
        return
    from rich.console import Console

    Console().print(render(read, differences))


def render(runs: Sequence[Run], differences: Sequence[Difference]) -> RenderableType:
    """Two tables: the runs, and every pair."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from mdpr.errors import printable
    from mdpr.evaluation.comparison import score_table
    from mdpr.evaluation.score_table import signed_points

    scores = score_table(runs)
    shown = {name: escape(printable(name)) for name in scores.rows}
    accuracies = Table(title="Class-balanced accuracy, percent")
    accuracies.add_column("run", overflow="fold")
    for group in scores.groups:
        accuracies.add_column(group, justify="right")
    for name in scores.rows:
        accuracies.add_row(shown[name], *scores.cells(name))
    pairs = Table(title="Differences in points (bold: significant at 5 % after Holm's correction)")
    for title in ("second", "minus first", "figure"):
        pairs.add_column(title, overflow="fold")
    for title in ("difference", "95 % interval", "p", "p (Holm)"):
        pairs.add_column(title, justify="right")
    for before, item in zip([None, *differences], differences, strict=False):
        if before is not None and (before.first, before.second) != (item.first, item.second):
            pairs.add_section()
        interval = f"{signed_points(item.interval[0])} to {signed_points(item.interval[1])}" if item.interval else ""
        pairs.add_row(
            shown[item.second],
            shown[item.first],
            item.figure,
            signed_points(item.difference),
            interval,
            f"{item.p:.2g}",
            f"{item.p_holm:.2g}",
            style="bold" if item.significant else None,
        )
    return Group(accuracies, pairs)


def _read(name: str, scratch: Path) -> Run:
    """A folder as it is; an MLflow run's artifacts through a folder below `scratch`."""
    from mdpr.errors import ArtifactError
    from mdpr.evaluation.comparison import read_results

    if name.startswith(MLFLOW):
        from mdpr.mlops.runs import fetch_results

        return read_results(fetch_results(name.removeprefix(MLFLOW), scratch), name)
    folder = Path(name)
    if not folder.is_dir():
        raise ArtifactError(f"{name} is not a folder: name an evaluation folder, or an MLflow run as runs:/RUN_ID")
    return read_results(folder, name)
