"""What a reader must know before the scores."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mdpr.artifacts import PictureSizes, read_images, write_images
from mdpr.evaluation.report.document import ReportContent
from mdpr.evaluation.report.text import diagnose
from mdpr.evaluation.scoring import measure_pictures
from mdpr.evaluation.tables import Results


@pytest.fixture(scope="module")
def made(content: Callable[..., ReportContent]) -> ReportContent:
    return content(4, 10)


def about_size(results: Results) -> list[str]:
    return [line for line in diagnose(results) if "larger than what the model sees" in line]


@pytest.mark.parametrize(("short_side_px", "is_said"), [(56, False), (224, False), (225, True), (3000, True)])
def test_pictures_far_larger_than_the_input_are_said(made: ReportContent, short_side_px: int, is_said: bool) -> None:
    sizes = PictureSizes(short_side_px=short_side_px, input_px=56)
    lines = about_size(replace(made.results, pictures=sizes))
    assert len(lines) == is_said
    assert all(f"{short_side_px:,} px" in line and "56 px" in line for line in lines)


def test_one_answer_to_images_of_several_classes_is_said_to_be_nothing_learned(made: ReportContent) -> None:
    table = made.results.predictions.assign(fused_top1=0)
    one_class = table[table["label"] == 0]  # one image, or images of one class, do not show it
    for predictions, is_said in ((table, True), (one_class, False), (one_class.head(1), False)):
        lines = diagnose(replace(made.results, predictions=predictions))
        assert any("learned nothing" in line for line in lines) == is_said


def test_the_line_opens_the_report_and_outlives_a_second_rendering(
    made: ReportContent, html_of: Callable[[ReportContent], str], tmp_path: Path
) -> None:
    results = replace(made.results, pictures=PictureSizes(short_side_px=900, input_px=224))
    results.write(tmp_path)
    again = Results.read(tmp_path, results.classes)
    assert again.pictures == results.pictures
    html = html_of(replace(made, results=again))
    assert html.index("larger than what the model sees") < html.index('id="branches"')


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    pictures = []
    for size_px in ((40, 30), (900, 700), (800, 1000)):
        stream = io.BytesIO()
        Image.new("RGB", size_px).save(stream, "PNG")
        pictures.append(stream.getvalue())
    write_images(tmp_path / "test.parquet", pictures, ["a", "b", "c"], [0, 1, 1])
    assert measure_pictures(read_images(tmp_path / "test.parquet"), 28) == PictureSizes(short_side_px=700, input_px=28)
