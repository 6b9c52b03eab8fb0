"""What the Kubeflow components call: a stage by its name, its parameters as text, its ports as artifacts.

Parameters travel as YAML text because Kubeflow turns whole numbers inside dictionaries into floats. Nothing
here imports kfp: an artifact is anything with a `path` and a `metadata` dictionary.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from mdpr.artifacts import read_json, read_metrics
from mdpr.config import parse_params
from mdpr.errors import ConfigError, MdprError
from mdpr.stages.definition import STAGES, load_stage, run_stage

logger = logging.getLogger(__name__)
CONFUSION_MAX_CLASSES = 100  # the matrix is drawn by a browser, and kept in the metadata store


class Artifact(Protocol):
    """The part of `kfp.dsl.Artifact` that is used here."""

    path: str
    metadata: dict[str, Any]


class ConfusionView(Protocol):
    """The part of `kfp.dsl.ClassificationMetrics` that is used here."""

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None: ...


# --- running a stage ----------------------------------------------------------------------------------------


def run_component(stage_name: str, params: str, /, **ports: Artifact) -> None:
    """Run a stage on the paths of `ports`; `params` is YAML text of the sections it reads.

    A user's mistake ends the process with one line on stderr and exit code 2.
    """
    with _one_line_errors():
        stage = load_stage(stage_name)
        paths = {port: Path(artifact.path) for port, artifact in ports.items()}
        run_stage(stage, paths, parse_params(_read_sections(params, "params")))
        for port in stage.outputs:
            ports[port].metadata.update(summarise(paths[port]))


def configure_stages(base: str, choices: Mapping[str, Mapping[str, Any]], overrides: str) -> tuple[str, ...]:
    """The parameters of each stage as YAML text, in the order of `STAGES`: what `run_component` takes.

    `base` holds all sections; `choices` are the parameters a person sets one by one; `overrides`, YAML text
    too, has the last word. Each text holds only the sections its stage reads, so that a setting of `tune`
    leaves the input of `prepare` as it was. A wrong key or value ends the process with one line, exit code 2.
    """
    with _one_line_errors():
        return tuple(merge_params(base, choices, overrides).values())


def merge_params(base: str, choices: Mapping[str, Mapping[str, Any]], overrides: str) -> dict[str, str]:
    """`configure_stages` by stage name; raises `ConfigError`."""
    merged = _read_sections(base, "base")
    for layer in (choices, _read_sections(overrides, "overrides")):
        merged = _merge(merged, layer)
    sections = parse_params(merged)
    return {
        name: yaml.safe_dump(
            {section: sections[section].model_dump(mode="json") for section in load_stage(name).sections.values()},
            sort_keys=False,
        )
        for name in STAGES
    }


def _read_sections(text: str, what: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(f"{what} is not valid YAML ({reason}); write it like tune: {{epochs: 5}}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{what} must hold sections, like tune: {{epochs: 5}}, not {text.strip()!r}")
    return content


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Progress on stderr; a user's mistake as the last line of the log instead of a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mdpr").setLevel(logging.INFO)
    try:
        yield
    except MdprError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


# --- what the Kubeflow UI shows -----------------------------------------------------------------------------


def summarise(output: Path) -> dict[str, Any]:
    """Single values for an artifact's metadata, from the JSON file it is or from the run.json inside it."""
    path = output if output.is_file() else output / "run.json"
    content = read_json(path) if path.is_file() else {}
    return {key: value for key, value in content.items() if isinstance(value, str | int | float | bool)}


def show_metrics(evaluation: Artifact, view: Artifact) -> None:
    """metrics.json, each value as branch.figure."""
    for branch, figures in read_metrics(Path(evaluation.path)).items():
        view.metadata.update({f"{branch}.{figure}": value for figure, value in figures.items()})


def show_confusion(evaluation: Artifact, view: ConfusionView) -> None:
    """confusion.csv (columns actual, predicted; one row a test image) as a matrix, rows actual."""
    import pandas as pd

    pairs = pd.read_csv(Path(evaluation.path) / "confusion.csv", dtype=str, keep_default_na=False)
    names = sorted(set(pairs["actual"]) | set(pairs["predicted"]))
    if len(names) > CONFUSION_MAX_CLASSES:
        logger.info("no confusion matrix in the UI: %d classes, at most %d", len(names), CONFUSION_MAX_CLASSES)
        return
    counts = pd.crosstab(pairs["actual"], pairs["predicted"]).reindex(index=names, columns=names, fill_value=0)
    view.log_confusion_matrix(names, counts.to_numpy().tolist())


def show_page(source: Artifact, name: str, view: Artifact) -> None:
    """One HTML file of an output as an artifact of its own, which the UI opens."""
    shutil.copyfile(Path(source.path) / name, view.path)
