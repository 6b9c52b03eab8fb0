"""`mdpr monitor`: a prediction log beside the test set, and whether to train again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from mdpr.monitoring.shift import Monitoring

PAGE, RESULT = "monitor.html", "monitor.json"


@click.command("monitor")
@click.option("--log", required=True, type=click.Path(path_type=Path), help="prediction log: a folder or one file")
@click.option(
    "--reference",
    default="data/evaluation",
    show_default=True,
    help="what evaluate wrote for the model: its folder, reference.parquet, runs:/RUN_ID or models:/NAME@ALIAS",
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("data/monitor"), show_default=True, help="folder to write"
)
@click.option(
    "--max-drop-points",
    type=click.FloatRange(0, 100),
    default=2.0,
    show_default=True,
    help="retrain if the expected accuracy falls by more points",
)
@click.option(
    "--max-label-shift",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="retrain if the class shares differ by more (total variation)",
)
@click.option(
    "--max-drift-auc",
    type=click.FloatRange(0.5, 1),
    default=0.65,
    show_default=True,
    help="retrain if a classifier tells new images from test images with a higher AUC",
)
@click.option(
    "--min-images", type=click.IntRange(1), default=200, show_default=True, help="fewer answers give no advice"
)
@click.option("--resamplings", type=click.IntRange(20, 10_000), default=100, show_default=True, help="of the intervals")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--mlflow/--no-mlflow", "to_mlflow", default=True, show_default=True, help="a run with figures and page")
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), help="names the experiment")
@click.option("--json", "as_json", is_flag=True, help="Print monitor.json and nothing else.")
def monitor(
    log: Path,
    reference: str,
    output: Path,
    max_drop_points: float,
    max_label_shift: float,
    max_drift_auc: float,
    min_images: int,
    resamplings: int,
    seed: int,
    to_mlflow: bool,
    params: Path,
    as_json: bool,
) -> None:
    """Judge the answers of a deployed model, without labels: label shift, expected accuracy, drift of features.

    Writes monitor.html and monitor.json, which `mdpr serve --prior` and `mdpr predict --prior` take. A threshold counts
    as passed if the 95 % interval reaches it. Exit code 1 if retraining is advised, 0 if not, 2 for bad input.

    Example: mdpr monitor --log predictions --reference models:/mdpr@champion
    """
    from mdpr.mlops.monitor_results import fetch_reference, publish_monitoring
    from mdpr.monitoring.page import render_monitoring
    from mdpr.monitoring.sample import read_reference, read_sample
    from mdpr.monitoring.shift import Thresholds, analyse
    from mdpr.pages import GENERATOR
    from mdpr.params import TrackingParams, load_params
    from mdpr.stages.outputs import write_whole

    tracking = load_params(params).tracking if params.exists() else TrackingParams()
    thresholds = Thresholds(max_drop_points, max_label_shift, max_drift_auc, min_images)
    with tempfile.TemporaryDirectory() as scratch:
        known = read_reference(fetch_reference(reference, Path(scratch)))
    content = analyse(known, read_sample(log, known.source, seed=seed), thresholds, resamplings=resamplings, seed=seed)

    text = json.dumps(content.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    make_folder(output)
    write_whole(output / RESULT, text, replaces=content.format)
    write_whole(output / PAGE, render_monitoring(content), replaces=GENERATOR)
    if to_mlflow:  # after all of it is on the disk
        publish_monitoring(content, {f"monitor/{name}": output / name for name in (RESULT, PAGE)}, tracking)
    if as_json:
        click.echo(text, nl=False)
    else:
        from rich.console import Console

        Console().print(summary_table(content))
        click.echo(f"{content.advice}: {content.reason}")
        click.echo(f"page: {output / PAGE}")
    if content.advice == "retrain":
        raise click.exceptions.Exit(1)


def make_folder(folder: Path) -> None:
    """Raises `ConfigError` if it cannot be made."""
    from mdpr.errors import ConfigError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be made ({error.strerror}): name another folder") from None


def summary_table(content: Monitoring) -> Table:
    """The figures that the advice rests on."""
    from rich.table import Table

    from mdpr.evaluation.score_table import points, signed_points

    accuracy, drift = content.accuracy, content.drift
    table = Table(title=f"{content.images:,} answers of {content.model} {content.version}".rstrip())
    for title in ("figure", "estimate", "95 % interval"):
        table.add_column(title, justify="left" if title == "figure" else "right")

    def add(name: str, value: str, interval: Sequence[str]) -> None:
        table.add_row(name, value, " to ".join(interval))

    shift = [f"{x:.3f}" for x in content.label_shift_interval]
    add("label shift, total variation", f"{content.label_shift:.3f}", shift)
    for group, share in content.groups.items():
        name = f"share of {group} classes, percent (test set {points(share.reference)})"
        add(name, points(share.estimated), [points(x) for x in share.interval])
    add("accuracy on the test set, percent", points(accuracy.reference), [])
    add("accuracy expected, percent", points(accuracy.expected), [points(x) for x in accuracy.expected_interval])
    gain = [signed_points(x) for x in accuracy.gain_interval]
    add("gain of --prior, points", signed_points(accuracy.gain_of_prior), gain)
    if drift:
        add(f"drift of {drift.features}, AUC", f"{drift.auc:.3f}", [f"{x:.3f}" for x in drift.interval])
    return table
