"""Tables, files and the gallery's choice; routing weights against a known truth, and the answer of an oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mdpr.artifacts import ClassInfo, display_names, read_intervals, read_metrics, read_predictions
from mdpr.artifacts.truth import ClassTruth, Truth, WorldTruth
from mdpr.errors import ArtifactError
from mdpr.evaluation.report.document import ReportContent
from mdpr.evaluation.report.gallery import THUMBNAIL_SIDE_PX, most_unlike, pick_tail_images, thumbnail_uri
from mdpr.evaluation.tables import Results, faithfulness, mean_routing, oracle_accuracy
from mdpr.params import DIMENSIONS


def test_what_is_written_is_what_is_read(content: Callable[..., ReportContent], tmp_path: Path) -> None:
    results: Results = content(10, 20).results
    results.write(tmp_path)
    assert read_metrics(tmp_path) == results.scores
    assert read_intervals(tmp_path) == results.intervals
    back = read_predictions(tmp_path)
    assert list(back.columns) == list(results.predictions.columns)
    assert back["index"].tolist() == list(range(200))
    assert back["fused_probability"].dtype == np.float32
    for column in ("fused_top5", "routing"):
        np.testing.assert_array_equal(np.stack(list(back[column])), np.stack(list(results.predictions[column])))
    per_class = pd.read_csv(tmp_path / "per_class.csv")
    assert per_class["fused_accuracy"].mean() == pytest.approx(results.scores["fused"]["all"], abs=1e-6)
    assert per_class["gain"].mean() == pytest.approx(
        results.scores["fused"]["all"] - results.scores["base"]["all"], abs=1e-6
    )
    pairs = pd.read_csv(tmp_path / "confusion.csv")
    assert (pairs["actual"] == pairs["predicted"]).mean() == pytest.approx(results.scores["fused"]["top1"])


def test_a_file_that_is_no_table_of_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing: run evaluate first"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"not parquet")
    with pytest.raises(ArtifactError, match="not a readable Parquet file"):
        read_predictions(tmp_path)
    pd.DataFrame({"label": [0]}).to_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(ArtifactError, match="not a table of predictions"):
        read_predictions(tmp_path)


def test_mean_routing_sums_to_one_and_is_empty_without_routing(
    predictions: Callable[..., pd.DataFrame],
) -> None:
    shots = ["many", "medium", "medium", "medium"]
    found = mean_routing(predictions(4, 5), shots)
    assert list(found) == ["many", "medium"]
    assert all(weights.sum() == pytest.approx(1) for weights in found.values())
    assert mean_routing(predictions(4, 5, routing=False), shots) == {}


def test_repeated_names_are_told_apart() -> None:
    classes = [
        ClassInfo(index=0, name="missile", train_images=1, shot="few"),
        ClassInfo(index=1, name="missile", disambiguation="projectile", train_images=1, shot="few"),
        ClassInfo(index=2, name="owl", train_images=1, shot="few"),
    ]
    assert display_names(classes) == ["missile (0)", "missile (projectile)", "owl"]


def test_gallery_takes_tail_images_right_and_wrong_from_every_class(
    predictions: Callable[..., pd.DataFrame], classes: Callable[..., list[ClassInfo]]
) -> None:
    table, ten = predictions(10, 60), classes(10)
    few = {item.index for item in ten if item.shot == "few"}
    picked = pick_tail_images(table, ten, 8)
    assert len(picked) == 8
    assert set(picked["label"]) == few
    correct = picked["fused_top1"] == picked["label"]
    assert 1 <= (~correct).sum() <= 4
    assert picked.equals(pick_tail_images(table, ten, 8))
    assert pick_tail_images(table, ten, 0).empty


def test_gallery_begins_with_two_images_of_a_class_whose_routing_differs_most(
    predictions: Callable[..., pd.DataFrame], classes: Callable[..., list[ClassInfo]]
) -> None:
    table, ten = predictions(10, 60), classes(10)
    first, second = pick_tail_images(table, ten, 8).head(2).to_dict("records")
    assert first["label"] == second["label"] == first["fused_top1"] == second["fused_top1"]
    apart = np.abs(first["routing"] - second["routing"]).sum()
    assert apart > 0.1
    right = table[table["fused_top1"] == table["label"]]
    same = np.stack(list(right.loc[right["label"] == first["label"], "routing"]))
    assert apart == pytest.approx(np.abs(same - first["routing"]).sum(axis=1).max())
    assert most_unlike(right.groupby("label").head(1)).empty  # no class has two images


def test_gallery_falls_back_to_the_rarest_group_there_is(predictions: Callable[..., pd.DataFrame]) -> None:
    two = [
        ClassInfo(index=index, name=f"c{index}", train_images=500, shot=shot)
        for index, shot in enumerate(("many", "medium"))
    ]
    assert set(pick_tail_images(predictions(2, 10), two, 4)["label"]) == {1}


def test_thumbnails_are_small_and_small_images_stay_lossless() -> None:
    assert thumbnail_uri(Image.new("L", (28, 28))).startswith("data:image/png;base64,")
    large = thumbnail_uri(Image.effect_noise((2000, 1500), 80))
    assert large.startswith("data:image/jpeg;base64,")
    assert len(large) < 4 * THUMBNAIL_SIDE_PX**2


GENERAL, FINE = DIMENSIONS[:2]


def test_weights_that_follow_the_truth_are_faithful_and_even_ones_say_nothing() -> None:
    state_N = np.array(["shown", "absent", "shown", "foreign"])
    pictures = pd.DataFrame({GENERAL: state_N, FINE: state_N})
    weights_NV = np.full((4, len(DIMENSIONS)), 0.2)
    weights_NV[:, 0] = [0.5, 0.1, 0.4, 0.2]
    assert faithfulness(weights_NV, pictures) == {GENERAL: 1.0, FINE: 0.5}
    assert faithfulness(-weights_NV, pictures) == {GENERAL: 0.0, FINE: 0.5}


def test_a_dimension_that_is_shown_everywhere_or_of_unknown_state_has_no_figure() -> None:
    assert faithfulness(np.zeros((2, len(DIMENSIONS))), pd.DataFrame({GENERAL: ["shown", "shown"]})) == {}


def test_an_oracle_believes_what_is_shown_and_shares_ties() -> None:
    values = ({"mark": "dots", "tool": "key"}, {"mark": "dots", "tool": "cup"}, {"mark": "checks", "tool": "flag"})
    classes = tuple(
        ClassTruth(index=index, name=f"c{index}", values=item, hidden_share=1 / 3) for index, item in enumerate(values)
    )
    pictures = pd.DataFrame(
        {
            "split": "test",
            "label": [0, 1, 2, 2],
            "mark": ["dots", "dots", "", "dots"],
            "mark_state": ["shown", "shown", "absent", "foreign"],
            "tool": ["key", "cup", "", "flag"],
            "tool_state": ["shown", "absent", "absent", "shown"],
        }
    )
    truth = Truth(WorldTruth(dimensions={}, classes=classes), pictures)
    groups = oracle_accuracy(truth, "test", ["many", "few", "few"])
    # Class 0 is certain, class 1 one of two with dots, class 2 one of three, then certain by its tool alone.
    assert groups["many"] == 1
    assert groups["few"] == pytest.approx((1 / 2 + (1 / 3 + 1) / 2) / 2)
