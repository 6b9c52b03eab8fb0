"""`mdpr summary`, `mdpr report`, `mdpr compare`: looking at what was evaluated."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mdpr.commands import PATH, params_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from rich.console import RenderableType

    from mdpr.artifacts import Intervals, Promotion, RoutingCheck
    from mdpr.evaluation.comparison import Difference, Run
    from mdpr.evaluation.score_table import Metrics
    from mdpr.params import TrackingParams

OTHER_SENTENCES = "Fused, sentences of other classes"
COMPARED = {"zero_shot": "the frozen model", "base": "its own base"}
DECISIONS = {"promoted": "promoted", "kept": "not promoted"}


@click.command("summary")
@click.option("--evaluation", type=PATH, default=Path("data/evaluation"), show_default=True)
@click.option("--promotion", type=PATH, default=Path("data/promotion.json"), show_default=True)
@params_option
def summary(evaluation: Path, promotion: Path, params: Path) -> None:
    """Show the scores, the champion in the MLflow registry, the gate's decision and the report's path."""
    from rich.console import Console

    from mdpr.params import load_params

    tracking = load_params(params).tracking
    Console().print(render_summary(read_summary(evaluation, promotion, tracking)))


@dataclass(frozen=True)
class Summary:
    """The end of the flow: figures of evaluation/, and the registry. `champion` is None if no version has the alias.

    `variants` is variants.csv, without rows if only the model itself was scored.
    """

    scores: Metrics
    intervals: Intervals
    variants: pd.DataFrame
    routing: RoutingCheck
    promotion: Promotion
    champion: str | None
    report: Path


def read_summary(evaluation: Path, promotion: Path, tracking: TrackingParams) -> Summary:
    """Gather the summary; raises `ArtifactError` if the flow has not run to its end."""
    from mdpr import artifacts
    from mdpr.errors import ArtifactError
    from mdpr.mlops.registry import find_champion

    report = evaluation / "report.html"
    for path in (evaluation / "metrics.json", report, promotion):
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: run `dvc repro` first")
    champion = find_champion(tracking.model_name)  # someone may have moved it since the gate decided
    return Summary(
        scores=artifacts.read_metrics(evaluation),
        intervals=artifacts.read_intervals(evaluation),
        variants=artifacts.read_table(evaluation, "variants.csv"),
        routing=artifacts.read_routing_check(evaluation),
        promotion=artifacts.Promotion.read(promotion),
        champion=champion.number if champion else None,
        report=report,
    )


def render_summary(summary: Summary) -> RenderableType:
    """One table, then a line each for gains, sentences, champion, gate and report."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from mdpr.errors import printable
    from mdpr.evaluation.report.text import faithfulness_line, sentences_line
    from mdpr.evaluation.score_table import BRANCHES, SHUFFLED, ScoreTable, points

    scores = ScoreTable.of(summary.scores)
    table = Table(title="Class-balanced accuracy on the test set, in percent")
    table.add_column("branch", no_wrap=True)
    for group in scores.groups:
        table.add_column(group, justify="right")
    for name in scores.rows:
        style = "bold" if name == BRANCHES["fused"] else None
        table.add_row(name, *scores.cells(name), style=style, end_section=name == BRANCHES["zero_shot"])
    for row in summary.variants[summary.variants["variant"] == SHUFFLED].to_dict("records"):
        table.add_row(OTHER_SENTENCES, *(points(row[group]) for group in scores.groups))
    decision = summary.promotion
    champion = f"version {summary.champion} of {decision.model_name}" if summary.champion else "none"
    facts = {
        "champion": f"{champion} (MLflow registry)",
        "gate": f"version {decision.version or 'none'} {DECISIONS[decision.decision]}: {decision.reason}",
        "report": str(summary.report),
    }
    found = [*gains(summary), sentences_line(summary.variants), faithfulness_line(summary.routing)]
    lines = [*filter(None, found), *(f"{key}: {fact}" for key, fact in facts.items())]
    return Group(table, *(Text(printable(line), overflow="fold") for line in lines))


def gains(summary: Summary) -> list[str]:
    """The gain of the final answer over the frozen model and, of a model that routes, over its own base."""
    from mdpr.evaluation.report.text import with_interval

    scores, intervals = summary.scores, summary.intervals.gain_of_fused
    return [
        f"Gain over {name}: {with_interval(scores['fused']['all'] - scores[branch]['all'], intervals[branch]['all'])}."
        for branch, name in COMPARED.items()
        if branch in intervals and (branch != "base" or "routed" in scores)
    ]


CommandT = TypeVar("CommandT", bound=Callable[..., Any])

PORTS = ("prepared", "probe", "knowledge", "features", "model", "evaluation")
PROMOTION = "promotion.json"


@click.group("report")
def report() -> None:
    """Make the report of an evaluation again, with the gate's decision, and open it."""


def _options(function: CommandT) -> CommandT:
    options = [
        click.option("--data", type=PATH, default=Path("data"), show_default=True, help="folder of all of these"),
        *(click.option(f"--{port}", type=PATH, help=f"reads: {port}  [default: DATA/{port}]") for port in PORTS),
        click.option("--promotion", type=PATH, help=f"reads: the gate's decision  [default: DATA/{PROMOTION}]"),
        click.option("--output", type=PATH, help="the page  [default: DATA/report.html]"),
        params_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@report.command("render")
@_options
def render(data: Path, promotion: Path | None, output: Path | None, params: Path, **ports: Path | None) -> None:
    """Write the page and print its path."""
    click.echo(_render(data, promotion, output, params, ports))


@report.command("open")
@_options
def open_page(data: Path, promotion: Path | None, output: Path | None, params: Path, **ports: Path | None) -> None:
    """Write the page and open it in the browser; without a browser, print its path."""
    import webbrowser

    page = _render(data, promotion, output, params, ports)
    if webbrowser.open(page.resolve().as_uri()):
        click.echo(f"opened {page}")
    else:
        click.echo(f"no browser was found: open {page.resolve()}")


def _render(
    data: Path, promotion: Path | None, output: Path | None, params: Path, ports: dict[str, Path | None]
) -> Path:
    from mdpr.artifacts import Promotion
    from mdpr.errors import ArtifactError
    from mdpr.evaluation.report.document import Folders, gather, make_figures, render_report
    from mdpr.pages import GENERATOR
    from mdpr.params import load_params
    from mdpr.stages.outputs import write_whole

    folders = {port: path or data / port for port, path in ports.items()}
    for port, folder in folders.items():
        if not folder.is_dir():
            raise ArtifactError(f"{folder} is missing: run `dvc repro` first, or name it with --{port}")
    if promotion is not None and not promotion.is_file():
        raise ArtifactError(f"{promotion} is missing: run promote first, or leave --promotion out")
    decided = promotion or data / PROMOTION
    decision = Promotion.read(decided) if decided.is_file() else None
    sections = load_params(params)
    content = gather(Folders(**folders), sections.tracking.model_name, sections.evaluate.gallery_images, decision)
    page = output or data / "report.html"
    write_whole(page, render_report(content, make_figures(content)), replaces=GENERATOR)
    return page


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN [RUN ...]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Compare runs on the test images they share: paired tests, corrected by Holm's method.

    Images that one of the runs was trained on are left out, and counted.
    A RUN is a folder that evaluate wrote, or an MLflow run as runs:/RUN_ID.
    """
    import json

    from mdpr.evaluation.comparison import align, compare, score_table

    if len(runs) < 2:
        raise click.UsageError("name at least two runs to compare")
    if len(set(runs)) < len(runs):
        raise click.UsageError("the same run is named twice")
    with tempfile.TemporaryDirectory() as scratch:
        aligned, notes = align([_read(name, Path(scratch) / str(index)) for index, name in enumerate(runs)])
    differences = compare(aligned)
    if as_json:
        content = {
            "notes": notes,
            "runs": [{"run": name, **figures} for name, figures in score_table(aligned).rows.items()],
            "differences": [{**asdict(item), "significant": item.significant} for item in differences],
        }
        click.echo(json.dumps(content, allow_nan=False))
        return
    from rich.console import Console

    Console().print(comparison_tables(aligned, differences))
    for note in notes:
        click.echo(f"note: {note}")


def comparison_tables(runs: Sequence[Run], differences: Sequence[Difference]) -> RenderableType:
    """Two tables: the runs, and every pair."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from mdpr.errors import printable
    from mdpr.evaluation.comparison import score_table
    from mdpr.evaluation.score_table import signed_points, signed_span

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
        pairs.add_row(
            shown[item.second],
            shown[item.first],
            item.figure,
            signed_points(item.difference),
            signed_span(item.interval) if item.interval else "",
            f"{item.p:.2g}",
            f"{item.p_holm:.2g}",
            style="bold" if item.significant else None,
        )
    return Group(accuracies, pairs)


def _read(name: str, scratch: Path) -> Run:
    """A folder as it is; an MLflow run's artifacts through a folder below `scratch`."""
    from mdpr.artifacts import SEEN_FILE
    from mdpr.errors import ArtifactError
    from mdpr.evaluation.comparison import read_results

    if name.startswith("runs:/"):
        from mdpr.mlops.runs import fetch_results

        folder = fetch_results(
            name.removeprefix("runs:/"), scratch, ("predictions.parquet", "per_class.csv", SEEN_FILE)
        )
    elif not (folder := Path(name)).is_dir():
        raise ArtifactError(f"{name} is not a folder: name an evaluation folder, or an MLflow run as runs:/RUN_ID")
    return read_results(folder, name)
