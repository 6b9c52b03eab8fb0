"""`mdpr registry`, `mdpr tracking`, `mdpr predict`, `mdpr serve`: MLflow's registry, and the models in it at work."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from mdpr.commands import PATH, params_option, read_tracking
from mdpr.params import MAX_TOP_K

if TYPE_CHECKING:
    from rich.table import Table

    from mdpr.model.inference import Classifier, Prediction
    from mdpr.monitoring.recording import AnswerRecorder


@click.group("registry")
def registry() -> None:
    """Look into the MLflow model registry."""


@registry.command("list")
@params_option
@click.option("--json", "as_json", is_flag=True, help="print a JSON array and nothing else")
def list_versions(params: Path, as_json: bool) -> None:
    """Every version of tracking.model_name: aliases, test figures, and the gate's decision."""
    from rich.console import Console

    from mdpr.mlops.registry import Registry, registry_rows
    from mdpr.mlops.store import connect
    from mdpr.params import load_params

    tracking = load_params(params).tracking
    rows = registry_rows(Registry(connect(), tracking.model_name))
    if as_json:
        click.echo(json.dumps(rows))
    else:
        Console().print(_versions_table(tracking.model_name, rows))


def _versions_table(name: str, rows: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from mdpr.mlops.registry import FIGURES

    columns = ("version", "aliases", "registered", *FIGURES, "gate")
    table = Table(box=None, title=f"{name}: versions in the MLflow registry (all, few, ece in percent)")
    for column in columns:
        table.add_column(column, justify="right" if column in ("version", *FIGURES) else "left")
    for row in rows:
        style = "bold" if "champion" in row["aliases"] else None
        table.add_row(*(Text(_cell(row[column])) for column in columns), style=style)
    return table


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(value)
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


@click.group("tracking")
def tracking() -> None:
    """Publish to MLflow what it could not take while it was down."""


@tracking.command("publish")
@params_option
def publish(params: Path) -> None:
    """Publish what waits in tracking.outbox to the store that it is for. Every later stage does so, too."""
    from mdpr.mlops.publishing import publish_outbox
    from mdpr.mlops.store import connect
    from mdpr.params import load_params

    outbox = load_params(params).tracking.outbox
    click.echo(f"items published: {publish_outbox(connect(), Path(outbox))} (from {outbox})")


BATCH_IMAGES = 64
PRIOR_FORMS = "uniform|FILE"
PRIOR_HELP = (
    "class shares to expect: adds log(share / share that the model assumes) to the logits; "
    "FILE: JSON with a share per class, or the monitor.json of mdpr monitor"
)


@click.command("predict")
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option("--model", help="data/model, or an address like models:/mdpr@champion  [default: the champion]")
@click.option("--features", type=PATH, help="the folder that encode wrote  [default: beside --model]")
@click.option("--out", type=PATH, default=Path("predictions.csv"), show_default=True, help="- to print")
@click.option(
    "--top-k", type=click.IntRange(1, MAX_TOP_K), default=1, show_default=True, help="how many classes to name"
)
@click.option("--routing", is_flag=True, help="Add a column per dimension: how much the image relied on that sentence.")
@params_option
@click.option("--prior", metavar=PRIOR_FORMS, help=PRIOR_HELP)
@click.option("--log", type=PATH, help="folder for a prediction log, as of mdpr serve")
@click.option("--log-embeddings", is_flag=True, help="Write the image features into the log, too.")
def predict(
    images: tuple[str, ...],
    model: str | None,
    features: Path | None,
    out: Path,
    top_k: int,
    routing: bool,
    params: Path,
    prior: str | None,
    log: Path | None,
    log_embeddings: bool,
) -> None:
    """Classify images: files, folders (searched whole), or a CSV file with a column `path`.

    Writes one row per image, in order. An image that cannot be read has its reason in the column `error`.

    Example: mdpr predict photos/ --model models:/mdpr@champion --top-k 3 --out predictions.csv
    """
    from mdpr.artifacts import escape_cell
    from mdpr.errors import DataError
    from mdpr.progress import track

    paths = list(chain.from_iterable(map(_paths, images)))
    if not paths:
        raise DataError(f"no image in {', '.join(images)}: name image files, or a folder that holds some")
    from mdpr.mlops.store import connect  # seconds to load: a wrong name is an error before
    from mdpr.model.inference import Classifier, read_prior

    columns = _columns(top_k, routing)
    with ExitStack() as stack:
        stream = stack.enter_context(_output(out))
        address = model or f"models:/{read_tracking(params).model_name}@champion"
        if address.startswith("models:/"):
            connect()
        classifier = Classifier.load(address, features)
        if prior:
            classifier.prior = read_prior(prior, classifier.config)
            click.echo(str(classifier.prior), err=True)
        recording = stack.enter_context(_recording(classifier, address, log, log_embeddings)) if log else None
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        bad = 0
        for row in track(_rows(classifier, paths, top_k, routing), "images", total=len(paths)):
            bad += "error" in row
            writer.writerow({name: escape_cell(str(cell)) for name, cell in row.items()})
        if bad == len(paths):
            raise DataError(f"none of the {bad} images could be read; the first: {row['error']}")
    where = "" if str(out) == "-" else f", written to {out}"
    unread = f", {bad} could not be read (column error)" if bad else ""
    logged = f"; {recording.written} answers in {log}, {recording.dropped} not" if recording else ""
    click.echo(f"{len(paths)} images{unread}{where}{logged}", err=True)


@contextmanager
def _recording(classifier: Classifier, address: str, folder: Path, embeddings: bool) -> Iterator[AnswerRecorder]:
    """A prediction log of what `classifier` answers during the block."""
    from mdpr.monitoring.recording import AnswerRecorder, LogSettings, check_folder, log_source

    check_folder(folder)
    log = AnswerRecorder(LogSettings(folder, embeddings), log_source(classifier, address))
    classifier.record = log.record
    try:
        yield log
    finally:
        log.close()


def _paths(name: str) -> list[Path]:
    """The images that an argument names, in a stable order; the number of other files in a folder is printed."""
    from mdpr.errors import DataError
    from mdpr.images.decoding import IMAGE_SUFFIXES

    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        if images and len(files) > len(images):
            other = next(file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES)
            rest = len(files) - len(images)
            click.echo(f"passed over: {rest} files without the suffix of an image, for example {other}", err=True)
        return images
    if not path.exists():
        raise DataError(f"{name} does not exist: name image files, a folder or a CSV file with a column path")
    if path.suffix.lower() == ".csv":
        return _listed(path)
    return [path]


def _listed(table: Path) -> list[Path]:
    from mdpr.artifacts import unescape_cell
    from mdpr.errors import DataError

    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as CSV: {error}") from None
    if rows and "path" not in rows[0]:
        raise DataError(f"{table} has no column path")
    return [table.parent / unescape_cell(row["path"] or "") for row in rows]


def _columns(top_k: int, routing: bool) -> list[str]:
    from mdpr.params import DIMENSIONS

    further = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("class", "probability")]
    return ["path", "class", "probability", *further, *(DIMENSIONS if routing else ()), "error"]


def _rows(classifier: Classifier, paths: list[Path], top_k: int, routing: bool) -> Iterator[dict[str, Any]]:
    """A row per image, in order; one that cannot be read costs only itself. A few batches are in memory at a time."""
    from torch import Tensor

    from mdpr.data.intake import map_in_order
    from mdpr.errors import DataError
    from mdpr.images.decoding import quiet_pillow

    def load(path: Path) -> tuple[Path, Tensor | str]:
        try:
            return path, classifier.preprocess(path)
        except DataError as error:
            return path, str(error)

    with quiet_pillow():
        loaded = map_in_order(load, paths)
        while batch := list(islice(loaded, BATCH_IMAGES)):
            tensors = [image for _, image in batch if isinstance(image, Tensor)]
            predictions = iter(classifier.predict(tensors, top_k=top_k))
            for path, image in batch:
                answer = {"error": image} if isinstance(image, str) else _answer(next(predictions), routing)
                yield {"path": str(path), **answer}


def _answer(prediction: Prediction, routing: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"class": prediction.class_name, "probability": f"{prediction.probability:.6f}"}
    for rank, (name, probability) in enumerate(prediction.top_k[1:], start=2):
        answer |= {f"class_{rank}": name, f"probability_{rank}": f"{probability:.6f}"}
    if routing and prediction.routing:
        answer |= {dimension: f"{weight:.6f}" for dimension, weight in prediction.routing.items()}
    return answer


@contextmanager
def _output(out: Path) -> Iterator[TextIO]:
    """A stream that becomes `out` once all of it is written. Only an earlier table of this command is replaced."""
    from mdpr.errors import DataError

    if str(out) == "-":
        yield sys.stdout
        return
    if out.exists():
        start = "path,class,probability"
        if not out.is_file() or not out.read_bytes().startswith(start.encode()):
            raise DataError(f"{out} exists and was not written by mdpr predict: name another file with --out")
    if not out.parent.is_dir():
        raise DataError(f"{out.parent} does not exist: make it, or name another file with --out")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


@click.command("serve")
@click.option("--alias", default="champion", show_default=True, help="which version of tracking.model_name to serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 to be reached from elsewhere")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="processes, a model in each")
@click.option("--timeout-s", type=click.IntRange(min=1), default=60, show_default=True)
@params_option
@click.option("--prior", metavar=PRIOR_FORMS, help=PRIOR_HELP)
@click.option("--log", type=PATH, help="folder for a prediction log: Parquet, without the images")
@click.option("--log-embeddings", is_flag=True, help="Write the image features into the log, too.")
@click.option("--log-rows", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="rows of a file")
@click.option("--log-seconds", type=click.FloatRange(0.1), default=300, show_default=True, help="age of a file at most")
@click.option("--log-max-mb", type=click.IntRange(1), default=1024, show_default=True, help="of the folder")
def serve(
    alias: str,
    host: str,
    port: int,
    workers: int,
    timeout_s: int,
    params: Path,
    prior: str | None,
    log: Path | None,
    log_embeddings: bool,
    **log_bounds: float,
) -> None:
    """Serve the champion over HTTP, in the protocol of MLflow: POST images to /invocations.

    With --log every answer goes into a prediction log, a file per worker and --log-rows; `mdpr monitor` reads it. At
    --log-max-mb nothing is deleted: further answers are counted as dropped (GET /metrics), and served all the same.
    """
    from mdpr.mlops.registry import resolve
    from mdpr.mlops.store import tracking_uri
    from mdpr.params import load_params

    tracking = load_params(params).tracking
    version = resolve(f"models:/{tracking.model_name}@{alias}")  # one for all workers, whoever promotes meanwhile
    click.echo(f"loading version {version.number} of {version.name} for http://{host}:{port}/invocations", err=True)
    options: dict[str, object] = {"host": host, "port": port, "workers": workers, "timeout_s": timeout_s}
    options |= {"prior": prior} if prior else {}
    options |= {"log": log, **log_bounds} if log else {}
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    arguments += ["--log-embeddings"] if log and log_embeddings else []
    # Workers share the cores: with all of them in each, PyTorch's threads would stand in each other's way.
    threads = max(1, (os.cpu_count() or 1) // workers)
    defaults = {"OMP_NUM_THREADS": str(threads), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**defaults, **os.environ, "MLFLOW_TRACKING_URI": tracking_uri()}
    command = [sys.executable, "-m", "mdpr.mlops.serving", version.address, *arguments]
    # The server takes this process's place: signals and the exit code are its own.
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell
