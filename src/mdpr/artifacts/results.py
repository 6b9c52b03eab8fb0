"""evaluation/: predictions, metrics and their intervals on the test set.

registration.json and promotion.json: a version in the registry, and what the gate decided about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mdpr.artifacts.formats import Format, parse, read_json
from mdpr.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd


TEST_DIGEST = "sha256 of test.parquet"  # in lineage.json


def write_predictions(evaluation: Path, predictions: pd.DataFrame) -> None:
    """predictions.parquet, one row a test image; the columns are listed in `mdpr.evaluation.predictions`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"top5": pa.list_(pa.int64()), "routing": pa.list_(pa.float32()), "probability": pa.float32()}
    fields = [(name, types.get(name.rsplit("_", 1)[-1], pa.int64())) for name in predictions.columns]
    table = pa.Table.from_pandas(predictions, schema=pa.schema(fields), preserve_index=False)
    table = table.replace_schema_metadata({"format": "mdpr-predictions/1"})
    pq.write_table(table, evaluation / "predictions.parquet")


def read_predictions(evaluation: Path) -> pd.DataFrame:
    """The table of `write_predictions`; raises `ArtifactError` where it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = evaluation / "predictions.parquet"
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run evaluate first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file: {error}") from None
    if (table.schema.metadata or {}).get(b"format") != b"mdpr-predictions/1":
        raise ArtifactError(f"{path} is not a table of predictions (mdpr-predictions/1): run evaluate again")
    return table.to_pandas()


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
    path = evaluation / "intervals.json"
    return parse(path, Intervals, read_json(path))


class Bias(Format):
    """How a class's accuracy goes with something: slope and Spearman's correlation; None where there is none."""

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
    path = evaluation / "biases.json"
    return parse(path, Biases, read_json(path))


def read_table(evaluation: Path, name: str) -> pd.DataFrame:
    """A CSV table of evaluation/; raises `ArtifactError` where it is missing or is none."""
    import pandas as pd

    path = evaluation / name
    try:  # a class may be called "NA"
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run evaluate first") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable table: {error}") from None


def read_metrics(evaluation: Path) -> dict[str, dict[str, float]]:
    """metrics.json: branch -> figure -> value; zero_shot, base and fused always, routed where there is one.

    Accuracies are fractions. A shot group without classes has no entry.
    """
    path = evaluation / "metrics.json"
    content = read_json(path)
    if not isinstance(content, dict) or not {"zero_shot", "base", "fused"} <= content.keys():
        raise ArtifactError(f"{path} must hold the branches zero_shot, base and fused: run evaluate again")
    return content


def read_shots(evaluation: Path) -> list[str]:
    """The shot group of each class in order of index, from per_class.csv."""
    import pandas as pd

    path = evaluation / "per_class.csv"
    try:
        table = pd.read_csv(path, usecols=["index", "shot"])
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run evaluate first") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not a table of classes: {error}") from None
    return [str(shot) for shot in table.sort_values("index")["shot"]]


class Registration(Format):
    """One version in the MLflow model registry; `model_digest` is of what it computes with, not of its run.

    digests: of what the model comes from (`model_digests`).
    """

    format: Literal["mdpr-registration/1"] = "mdpr-registration/1"
    model_name: str
    version: str
    run_id: str
    model_digest: str
    alias: str
    source: str
    digests: dict[str, str] = Field(default_factory=dict)


def read_registration(path: Path) -> Registration:
    return parse(path, Registration, read_json(path))


class Check(Format):
    """One test of the gate: passed where `value` is above, at least or at most `threshold`, as `passes` says.

    Where `value` is a confidence bound, `estimate` is the measured figure that it bounds; otherwise the two are equal.
    """

    name: str
    value: float
    estimate: float
    passes: Literal["above", "at least", "at most"]
    threshold: float
    passed: bool


class Promotion(Format):
    """What the gate decided; the versions behind the alias `champion` before and after (None: no champion)."""

    format: Literal["mdpr-promotion/1"] = "mdpr-promotion/1"
    decision: Literal["promoted", "kept"]
    reason: str
    model_name: str
    version: str
    champion_before: str | None
    champion_after: str | None
    checks: tuple[Check, ...]


def read_promotion(path: Path) -> Promotion:
    return parse(path, Promotion, read_json(path))
