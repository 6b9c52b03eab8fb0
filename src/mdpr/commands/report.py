"""`mdpr report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

PORTS = ("prepared", "probe", "knowledge", "features", "model", "evaluation")
PROMOTION = "promotion.json"


@click.group("report")
def command() -> None:
    """Make the report of an evaluation again, with the gate's decision, and open it."""


def _options(function: CommandT) -> CommandT:
    path = click.Path(path_type=Path)
    options = [
        click.option("--data", type=path, default=Path("data"), show_default=True, help="folder of all of these"),
        *(click.option(f"--{port}", type=path, help=f"reads: {port}  [default: DATA/{port}]") for port in PORTS),
        click.option("--promotion", type=path, help=f"reads: the gate's decision  [default: DATA/{PROMOTION}]"),
        click.option("--output", type=path, help="the page  [default: DATA/report.html]"),
        click.option("--params", type=path, default=Path("params.yaml"), show_default=True),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@command.command("render")
@_options
def render(data: Path, promotion: Path | None, output: Path | None, params: Path, **ports: Path | None) -> None:
    """Write the page and print its path."""
    click.echo(_render(data, promotion, output, params, ports))


@command.command("open")
@_options
def open_page(data: Path, promotion: Path | None, output: Path | None, params: Path, **ports: Path | None) -> None:
    """Write the page and open it in the browser; where there is none, print its path."""
    import webbrowser

    page = _render(data, promotion, output, params, ports)
    if webbrowser.open(page.resolve().as_uri()):
        click.echo(f"opened {page}")
    else:
        click.echo(f"no browser was found: open {page.resolve()}")


def _render(
    data: Path, promotion: Path | None, output: Path | None, params: Path, ports: dict[str, Path | None]
) -> Path:
    from mdpr.artifacts import read_promotion
    from mdpr.errors import ArtifactError
    from mdpr.evaluation.report.document import Folders, gather, make_figures, render_report
    from mdpr.params import load_params
    from mdpr.stages.outputs import write_whole

    folders = Folders(**{port: path or data / port for port, path in ports.items()})
    for port, path in ports.items():
        folder = path or data / port
        if not folder.is_dir():
            raise ArtifactError(f"{folder} is missing: run `dvc repro` first, or name it with --{port}")
    if promotion is not None and not promotion.is_file():
        raise ArtifactError(f"{promotion} is missing: run promote first, or leave --promotion out")
    decided = promotion or data / PROMOTION
    decision = read_promotion(decided) if decided.is_file() else None
    sections = load_params(params)
    tracking, evaluate = sections.tracking, sections.evaluate
    title = f"{tracking.model_name}: evaluation on the test set"
    content = gather(folders, title, evaluate.gallery_images, decision)
    page = output or data / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, render_report(content, make_figures(content)))
    return page
