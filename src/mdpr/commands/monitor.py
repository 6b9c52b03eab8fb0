"""`mdpr monitor`: a prediction log beside the test set, and whether to train again."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdpr.commands import PATH, params_option, read_tracking

if TYPE_CHECKING:
    from mdpr.monitoring.result import Monitoring
    from mdpr.params import TrackingParams

logger = logging.getLogger(__name__)

PAGE, RESULT = "monitor.html", "monitor.json"


@click.command("monitor")
@click.option("--log", required=True, type=PATH, help="prediction log: a folder or one file")
@click.option(
    "--reference",
    default="data/evaluation",
    show_default=True,
    help="what evaluate wrote for the model: its folder, reference.parquet, runs:/RUN_ID or models:/NAME@ALIAS",
)
@click.option("--output", type=PATH, default=Path("data/monitor"), show_default=True, help="folder to write")
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
    help="retrain if a classifier distinguishes new images from test images with a higher AUC",
)
@click.option(
    "--min-images", type=click.IntRange(1), default=200, show_default=True, help="fewer answers give no advice"
)
@click.option("--resamplings", type=click.IntRange(20, 10_000), default=100, show_default=True, help="of the intervals")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--mlflow/--no-mlflow", "to_mlflow", default=True, show_default=True, help="a run with figures and page")
@params_option
@click.option("--json", "as_json", is_flag=True, help="Print monitor.json and nothing else.")
def monitor(
    log: Path,
    reference: str,
    output: Path,
    resamplings: int,
    seed: int,
    to_mlflow: bool,
    params: Path,
    as_json: bool,
    **limits: Any,
) -> None:
    """Judge the answers of a deployed model, without labels: label shift, expected accuracy, drift of features.

    Writes monitor.html and monitor.json, which `mdpr serve --prior` and `mdpr predict --prior` take. A threshold counts
    as passed if the 95 % interval reaches it. Exit code 1 if retraining is advised, 0 if not, 2 for bad input.

    Example: mdpr monitor --log predictions --reference models:/mdpr@champion
    """
    from mdpr.monitoring.result import monitoring_table, render_monitoring
    from mdpr.monitoring.sample import read_reference, read_sample
    from mdpr.monitoring.shift import Thresholds, analyse
    from mdpr.pages import GENERATOR
    from mdpr.stages.outputs import write_whole

    tracking = read_tracking(params)
    with tempfile.TemporaryDirectory() as scratch:
        known = read_reference(fetch_reference(reference, Path(scratch)))
    sample = read_sample(log, known.source, seed=seed)
    content = analyse(known, sample, Thresholds(**limits), resamplings=resamplings, seed=seed)

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

        Console().print(monitoring_table(content))
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


def fetch_reference(address: str, folder: Path) -> Path:
    """`address` as a path: what it is, or copies below `folder` of the reference that runs:/ID or models:/... has.

    Raises `TrackingError` if MLflow has no such run or version, `ArtifactError` if that has no reference.
    """
    from mdpr.artifacts.prediction_log import REFERENCE_FILE
    from mdpr.mlops.registry import MODELS, RUNS, resolve
    from mdpr.mlops.runs import fetch_results

    if not address.startswith((MODELS, RUNS)):
        return Path(address)
    run_id = resolve(address).results_run_id if address.startswith(MODELS) else address.removeprefix(RUNS)
    return fetch_results(run_id, folder, [REFERENCE_FILE, "per_class.csv"])


def publish_monitoring(content: Monitoring, files: Mapping[str, Path], tracking: TrackingParams) -> None:
    """A run of its own with the figures and `files` (artifact path -> file). What MLflow does not take is a warning."""
    from mdpr.errors import TrackingError
    from mdpr.mlops.runs import add_results, open_run
    from mdpr.monitoring.result import monitoring_metrics

    tags = {"mdpr.advice": content.advice, "mdpr.model": content.model, "mdpr.model_version": content.version}
    tags["mlflow.source.name"] = "mdpr monitor"
    try:
        with open_run(tracking, "monitor", {"model": content.model, "version": content.version}, tags) as run:
            tracked = run.tracked
    except TrackingError as error:
        logger.warning("%s; the monitoring is on the disk, not in MLflow", error)
        return
    add_results(tracked, tracking, monitoring_metrics(content), files)
