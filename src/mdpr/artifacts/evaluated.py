"""evaluation/: predictions on the test set, metrics and their intervals, tables, lineage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mdpr.artifacts.formats import Format, read_csv, read_json
from mdpr.artifacts.prepared import SHOT_GROUPS
from mdpr.errors import ArtifactError, one_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TEST_DIGEST = "sha256 of test.parquet"  # in lineage.json
GROUPS = ("all", *SHOT_GROUPS)
FRACTIONS = {
    *GROUPS,
    *("worst_class", "harmonic_mean", "geometric_mean", "top1", "top5", "macro_f1", "ece", "classwise_ece"),
}
TABLES: dict[str, dict[str, type]] = {
    "per_class.csv": {
        "index": int,
        "class": str,
        "shot": str,
        "train_images": int,
        "test_images": int,
        "zero_shot_accuracy": float,
        "base_accuracy": float,
    },
    "confusion.csv": {"actual": str, "predicted": str},
    "reliability.csv": {"images": int, "confidence": float, "accuracy": float, "branch": str},
    "variants.csv": {"variant": str, "kind": str, "gain": float},  # without rows if only the model was scored
}
PREDICTED = ("index", "image", "label", "zero_shot_top1", "base_top1")  # columns of every table of predictions


def write_predictions(evaluation: Path, predictions: pd.DataFrame) -> None:
    """predictions.parquet, one row per test image; the columns are listed in `mdpr.evaluation.predictions`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [(name, _column_type(name)) for name in predictions.columns]
    table = pa.Table.from_pandas(predictions, schema=pa.schema(fields), preserve_index=False)
    table = table.replace_schema_metadata({"format": "mdpr-predictions/1"})
    pq.write_table(table, evaluation / "predictions.parquet")


def read_predictions(evaluation: Path) -> pd.DataFrame:
    """The table of `write_predictions`; raises `ArtifactError` if it is missing, damaged or not of its types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = evaluation / "predictions.parquet"
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: run evaluate first")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file ({one_line(error)}): run evaluate again") from None
    if (table.schema.metadata or {}).get(b"format") != b"mdpr-predictions/1":
        raise ArtifactError(f"{path} is not a table of predictions (mdpr-predictions/1): run evaluate again")
    if fault := _fault(table):
        raise ArtifactError(f"{path}: {fault}: run evaluate again")
    return table.to_pandas()


def _column_type(name: str) -> pa.DataType:
    import pyarrow as pa

    types = {"top5": pa.list_(pa.int64()), "routing": pa.list_(pa.float32()), "probability": pa.float32()}
    return types.get(name.rsplit("_", 1)[-1], pa.int64())


def _fault(table: pa.Table) -> str | None:
    """The first column that is missing, of another type, or outside its range."""
    import pyarrow.compute as pc

    if missing := [name for name in PREDICTED if name not in table.schema.names]:
        return f"{missing[0]} is missing"
    if table.num_rows == 0:
        return "there are no rows"
    for field, column in zip(table.schema, table.columns, strict=True):
        expected = _column_type(field.name)
        if field.type != expected:
            return f"{field.name} is {field.type}, expected {expected}"
        values = pc.list_flatten(column) if hasattr(expected, "value_type") else column
        if column.null_count or values.null_count:
            return f"{field.name} has empty cells"
        if len(values) % table.num_rows:
            return f"{field.name} has lists of different lengths"
        low, high = (pc.min_max(values)[side].as_py() for side in ("min", "max"))
        fraction = field.name.endswith(("probability", "routing"))
        if low < 0 or (fraction and high > 1 + 1e-3) or (fraction and pc.any(pc.is_nan(values)).as_py()):
            return f"{field.name} has values from {low:g} to {high:g}, or none"
    return None


class Intervals(Format):
    """Intervals (low, high) as fractions: branch -> figure -> interval.

    accuracy         all, many, medium, few, head_tail_gap, worst_class, harmonic_mean, geometric_mean
    gain_of_fused    class-balanced accuracy of fused minus that of the named branch, on the same images: all, many,
                     medium, few
    """

    format: Literal["mdpr-intervals/1"] = "mdpr-intervals/1"
    method: str
    level: float
    resamplings: int
    seed: int
    accuracy: dict[str, dict[str, tuple[float, float]]]
    gain_of_fused: dict[str, dict[str, tuple[float, float]]]


def read_intervals(evaluation: Path) -> Intervals:
    """intervals.json; raises `ArtifactError`."""
    return Intervals.read(evaluation / "intervals.json")


class Bias(Format):
    """How a class's accuracy goes with something: slope and Spearman's correlation; None if it does not exist."""

    slope: float | None
    slope_interval: tuple[float, float] | None
    correlation: float | None
    correlation_interval: tuple[float, float] | None


class Biases(Format):
    """branch -> by_count, by_prior, by_zero_shot -> bias (see `mdpr.evaluation.uncertainty`)."""

    format: Literal["mdpr-biases/1"] = "mdpr-biases/1"
    level: float
    resamplings: int
    seed: int
    branches: dict[str, dict[str, Bias]]


def read_biases(evaluation: Path) -> Biases:
    """biases.json; raises `ArtifactError`."""
    return Biases.read(evaluation / "biases.json")


class RoutingCheck(Format):
    """routing.json: whether routing can be trusted, as far as the data set allows an answer. Fractions.

    faithfulness    dimension -> AUC (`mdpr.evaluation.tables.faithfulness`); empty without truth
    oracle          shot group -> accuracy (`mdpr.evaluation.tables.oracle_accuracy`); empty without truth
    deletion        accuracy without the least weighted sentence minus that without the most weighted one; None if it
                    was not measured
    """

    format: Literal["mdpr-routing/1"] = "mdpr-routing/1"
    faithfulness: dict[str, float]
    oracle: dict[str, float]
    deletion: float | None
    deletion_interval: tuple[float, float] | None


def read_routing_check(evaluation: Path) -> RoutingCheck:
    """routing.json; raises `ArtifactError`."""
    return RoutingCheck.read(evaluation / "routing.json")


class PictureSizes(Format):
    """pictures.json: the median short side of the test pictures as prepared, and the side of the backbone's input."""

    format: Literal["mdpr-pictures/1"] = "mdpr-pictures/1"
    short_side_px: float
    input_px: int


def read_picture_sizes(evaluation: Path) -> PictureSizes:
    """pictures.json; raises `ArtifactError`."""
    return PictureSizes.read(evaluation / "pictures.json")


def read_table(evaluation: Path, name: str) -> pd.DataFrame:
    """A CSV table of evaluation/, its columns checked."""
    return read_csv(evaluation / name, "evaluate", TABLES[name], may_be_empty=name == "variants.csv")


def read_shots(evaluation: Path) -> list[str]:
    """The shot group of each class in order of index, from per_class.csv; raises `ArtifactError`."""
    table = read_table(evaluation, "per_class.csv").sort_values("index")
    if table["index"].tolist() != list(range(len(table))) or not set(table["shot"]) <= set(SHOT_GROUPS):
        groups = ", ".join(SHOT_GROUPS)
        raise ArtifactError(f"{evaluation / 'per_class.csv'} must hold each class once, in one of the groups {groups}")
    return [str(shot) for shot in table["shot"]]


def read_class_names(evaluation: Path) -> list[str]:
    """The name of each class in order of index, from per_class.csv, as it is written there; no two are equal."""
    return [str(name) for name in read_table(evaluation, "per_class.csv").sort_values("index")["class"]]


def read_lineage(evaluation: Path) -> dict[str, str]:
    """lineage.json: what a result comes from, name -> text."""
    path = evaluation / "lineage.json"
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ArtifactError(f"{path} must hold names and texts: run evaluate again")
    return content


def read_metrics(evaluation: Path) -> dict[str, dict[str, float]]:
    """metrics.json: branch -> figure -> value; zero_shot, base and fused always, routed if the model routes.

    All figures but nll (nats) are fractions, as in all files of evaluation/, for programs. What people read (report,
    scores/, MLflow, registry) is in percent. A shot group without classes has no entry in any branch.
    """
    path = evaluation / "metrics.json"
    content = read_json(path)
    fault = _metrics_fault(content)
    if fault:
        raise ArtifactError(f"{path}: {fault}: run evaluate again")
    return {branch: {key: float(value) for key, value in figures.items()} for branch, figures in content.items()}


def _metrics_fault(content: Any) -> str | None:
    if not isinstance(content, dict):
        return "must hold the branches zero_shot, base and fused"
    for branch in dict.fromkeys(("zero_shot", "base", "fused", *content)):
        figures = content.get(branch)
        if not isinstance(figures, Mapping):
            return f"{branch} must hold figures"
        for key, value in figures.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return f"{branch}.{key}: must be a number"
            if key in FRACTIONS and not 0 <= value <= 1 + 1e-9:
                return f"{branch}.{key} = {value}: must lie between 0 and 1"
        for group in GROUPS:
            if group not in figures and (group == "all" or group in content["zero_shot"]):
                return f"{branch}.{group} is missing"
    return None
