"""The cost of an evaluation beside the model: intervals and the report, on synthetic answers.

    python -m benchmarks.evaluation [--images 50000] [--classes 1000] [--resamplings 2000] [--json]

bootstrap_s and bootstrap_peak_mb are of all of intervals.json (every branch, group and gain); report_s and report_mb of
drawing every chart and rendering report.html. Peak memory is resident memory beyond what was there before.
"""

from __future__ import annotations

import logging
import os

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.measure import peak_mib, timed
from benchmarks.report import device_name, emit, make_parser
from mdpr.artifacts import ClassInfo, Intervals, PictureSizes
from mdpr.evaluation.predictions import PredictionRecorder, Predictions
from mdpr.evaluation.report.document import ReportContent, make_figures, render_report
from mdpr.evaluation.report.figure import Figure
from mdpr.evaluation.report.gallery import make_gallery, pick_tail_images
from mdpr.evaluation.score_table import BRANCHES
from mdpr.evaluation.tables import Results
from mdpr.evaluation.uncertainty import intervals
from mdpr.params import DIMENSIONS

PACKAGES = ("numpy", "pandas", "altair", "vl-convert-python", "jinja2")
GALLERY_IMAGES = 24
EPOCHS = 20
MB = 1e6


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=50_000, help="test images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--resamplings", type=int, default=2000, help="bootstrap samples")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    classes = make_classes(arguments.classes)
    predictions = make_predictions(arguments.images, arguments.classes)
    shots = [item.shot for item in classes]

    def bootstrap() -> Intervals:
        return intervals(predictions, shots, arguments.resamplings)

    peak_mb = peak_mib(bootstrap, "cpu") * 2**20 / MB
    bootstrap_s = timed(bootstrap, "cpu")
    content = make_content(predictions, classes)
    pages: list[str] = []

    def report() -> None:
        figures: list[Figure] = make_figures(content)
        pages.append(render_report(content, figures))

    report_s = timed(report, "cpu")
    figures = {
        "bootstrap_s": bootstrap_s,
        "bootstrap_peak_mb": peak_mb,
        "report_s": report_s,
        "report_mb": len(pages[0].encode()) / MB,
    }
    sizes = {"images": arguments.images, "classes": arguments.classes, "resamplings": arguments.resamplings}
    emit("evaluation", f"{device_name()}, {os.cpu_count()} cores", PACKAGES, figures, [sizes | figures], arguments.json)


def make_classes(count: int) -> list[ClassInfo]:
    """An exponential long tail from 1,280 images to 5."""
    sizes = np.geomspace(1280, 5, count).round().astype(int).tolist()
    return [
        ClassInfo(
            index=index,
            name=f"class {index}",
            train_images=size,
            shot="many" if size > 100 else "few" if size < 20 else "medium",
        )
        for index, size in enumerate(sizes)
    ]


def make_predictions(images: int, classes: int, batch_size: int = 1000) -> pd.DataFrame:
    """Random answers to a balanced test set, the tail worse than the head, by the real recorder."""
    generator = torch.Generator().manual_seed(0)
    label_N = torch.arange(images) % classes
    recorder = PredictionRecorder()
    for label_B in label_N.split(batch_size):
        scores = {}
        for step, branch in enumerate(BRANCHES):
            scores_BC = torch.randn(len(label_B), classes, generator=generator)
            scores_BC[torch.arange(len(label_B)), label_B] += 4 + 0.2 * step - 2 * label_B / classes
            scores[branch] = scores_BC.log_softmax(dim=-1)
        weights_BV = torch.rand(len(label_B), len(DIMENSIONS), generator=generator).softmax(dim=-1)
        recorder.add(label_B, scores, {"routing": weights_BV, "true_routing": weights_BV})
    return recorder.table()


def make_content(predictions: pd.DataFrame, classes: list[ClassInfo]) -> ReportContent:
    """A report's content with every part that it can have; scores as evaluate makes them."""
    count = len(classes)
    prior_C = np.random.default_rng(1).dirichlet(np.full(count, 3.0))
    predicted = Predictions(predictions, dict.fromkeys(BRANCHES, 0.0), predictions[["index", "label"]], {})
    pictures = PictureSizes(short_side_px=224, input_px=224)
    picked = pick_tail_images(predictions, classes, GALLERY_IMAGES)
    pixels = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    sentences_CV = [[f"A sentence on the {key} of {item.name}." for key in DIMENSIONS] for item in classes]
    epoch = np.arange(EPOCHS)
    curves = {f"val_{branch}_{group}": 0.5 + epoch / 100 for branch in list(BRANCHES)[1:] for group in ("all", "few")}
    return ReportContent(
        title="benchmark",
        results=Results.of(
            predicted, classes, np.roll(np.arange(count), 1), np.log(prior_C), pictures, resamplings=200
        ),
        history=pd.DataFrame({"epoch": epoch, "loss": 2.0 / (epoch + 1)} | curves),
        selected_epoch=EPOCHS - 1,
        prior_C=prior_C,
        gallery=make_gallery(
            picked, classes, sentences_CV, dict.fromkeys(picked["index"].tolist(), Image.fromarray(pixels))
        ),
        lineage={"MLflow run": "0" * 32},
        audit=[],
    )


if __name__ == "__main__":
    main()
