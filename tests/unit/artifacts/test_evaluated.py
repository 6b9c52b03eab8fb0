"""Files of evaluation/: typed, and refused in one line if they are not what evaluate writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from benchmarks.tampering import METRICS, TABLE, column, document, parquet, text

from mdpr.artifacts import read_lineage, read_metrics, read_predictions, read_shots, read_table, write_predictions
from mdpr.errors import ArtifactError

FIGURES = {"all": 0.5, "many": 0.6, "few": 0.4, "ece": 0.1, "nll": 1.2, "head_tail_gap": -0.2}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(dict.fromkeys(("zero_shot", "base", "fused"), FIGURES)))
    return path


def refused(read: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(ArtifactError) as raised:
        read(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_metrics_are_numbers(metrics: Path) -> None:
    assert read_metrics(metrics.parent)["fused"] == FIGURES


@pytest.mark.parametrize("name", METRICS)
def test_changed_metrics_are_refused_in_one_line(metrics: Path, name: str) -> None:
    METRICS[name](metrics)
    assert str(metrics) in refused(read_metrics, metrics.parent)


def test_a_figure_of_text_is_named_with_its_branch(metrics: Path) -> None:
    METRICS["text"](metrics)
    assert "fused.all: must be a number" in refused(read_metrics, metrics.parent)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("file", ["per_class.csv", "confusion.csv", "reliability.csv"])
def test_changed_tables_are_refused_in_one_line(tmp_path: Path, file: str, name: str) -> None:
    heads = {
        "per_class.csv": "index,class,shot,train_images,test_images,zero_shot_accuracy,base_accuracy\n"
        "0,NA,few,1,2,,0.5\n",
        "confusion.csv": "actual,predicted\n01,1\n",
        "reliability.csv": "low,high,images,confidence,accuracy,branch\n0,1,3,0.5,0.5,base\n",
    }
    (tmp_path / file).write_text(heads[file])
    first = read_table(tmp_path, file).iloc[0]
    assert file != "confusion.csv" or (first["actual"], first["predicted"]) == ("01", "1")
    assert file != "per_class.csv" or (first["class"], read_shots(tmp_path)) == ("NA", ["few"])
    TABLE[name](tmp_path / file)
    assert file in refused(read_table, tmp_path, file)


@pytest.mark.parametrize(
    "change",
    [
        parquet(lambda table: table.drop_columns(["label"])),
        parquet(lambda table: table.drop_columns(["image"])),
        parquet(lambda table: table.slice(0, 0)),
        parquet(lambda table: table.replace_schema_metadata({})),
        column("label", -1),
        column("label", None),
        column("base_probability", 2.0),
        column("base_probability", float("nan")),
        column("base_top5", [1]),
        text(b""),
        Path.unlink,
    ],
)
def test_changed_predictions_are_refused_in_one_line(tmp_path: Path, change: Callable[[Path], object]) -> None:
    rows = pd.DataFrame(
        {
            "index": [0, 1],
            "image": [7, 5],
            "label": [0, 1],
            "zero_shot_top1": [0, 0],
            "base_top1": [0, 1],
            "base_top5": [[0, 1], [1, 0]],
            "base_probability": [0.5, 1.0],
        }
    )
    write_predictions(tmp_path, rows)
    assert read_predictions(tmp_path)["label"].tolist() == [0, 1]
    change(tmp_path / "predictions.parquet")
    assert "predictions.parquet" in refused(read_predictions, tmp_path)


def test_lineage_is_names_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "lineage.json"
    path.write_text('{"backbone": "x"}')
    assert read_lineage(tmp_path) == {"backbone": "x"}
    for change in (text("[1]"), text('{"a": 1}'), text(b"\xff\xfe"), document(lambda content: [content]), Path.unlink):
        path.write_text('{"backbone": "x"}')
        change(path)
        assert "lineage.json" in refused(read_lineage, tmp_path)
