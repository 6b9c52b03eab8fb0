"""A synthetic evaluation of any number of classes, made with the real recorder from random scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mdpr.artifacts import ClassInfo, PictureSizes, ShotGroup
from mdpr.evaluation.predictions import PredictionRecorder, Predictions
from mdpr.evaluation.report.document import AuditFinding, ReportContent, make_figures, render_report
from mdpr.evaluation.report.gallery import make_gallery, pick_tail_images
from mdpr.evaluation.score_table import BRANCHES
from mdpr.evaluation.tables import Results
from mdpr.params import DIMENSIONS

PICTURES = PictureSizes(short_side_px=28, input_px=56)


def shot_of(train_images: int) -> ShotGroup:
    return "many" if train_images > 100 else "few" if train_images < 20 else "medium"


def make_classes(count: int, name: Callable[[int], str] = "class {}".format) -> list[ClassInfo]:
    sizes = [max(1, round(1000 * 0.01 ** (index / (count - 1)))) for index in range(count)]
    return [
        ClassInfo(index=index, name=name(index), train_images=size, shot=shot_of(size))
        for index, size in enumerate(sizes)
    ]


def make_predictions(class_count: int, images_per_class: int, routing: bool = True, seed: int = 0) -> pd.DataFrame:
    """Random predictions, better on early classes; two batches."""
    generator = torch.Generator().manual_seed(seed)
    label_N = torch.arange(class_count).repeat_interleave(images_per_class)
    recorder = PredictionRecorder()
    for batch in label_N.split(len(label_N) // 2 + 1):
        skill_B = 3 - 1.5 * batch / class_count
        branches = ["zero_shot", "base", "routed", "fused"] if routing else ["zero_shot", "base"]
        scores = {}
        for bonus, branch in enumerate(branches):
            logits_BC = torch.randn(len(batch), class_count, generator=generator)
            logits_BC[torch.arange(len(batch)), batch] += skill_B + 0.4 * bonus
            scores[branch] = logits_BC.log_softmax(dim=-1)
        weights_BV = torch.rand(len(batch), len(DIMENSIONS), generator=generator).softmax(dim=-1)
        recorder.add(batch, scores, {"routing": weights_BV, "true_routing": weights_BV} if routing else None)
    return recorder.table().assign(image=range(len(label_N)))


def make_answers(predictions: pd.DataFrame, variants: bool = True) -> Predictions:
    """What `predict` would give: base and zero-shot answers stand in for two variants."""
    columns = ["index", "label", *(name for name in predictions if name.startswith(("base_", "zero_shot_")))]
    renamed = {
        name: name.replace("zero_shot_", "uniform_routing_").replace("base_", "flip_ensemble_") for name in columns
    }
    return Predictions(
        predictions,
        dict.fromkeys(BRANCHES, 0.01),
        predictions[columns].rename(columns=renamed) if variants else predictions[["index", "label"]],
        {"uniform_routing": "ablation", "flip_ensemble": "robust"} if variants else {},
    )


def make_history(epochs: int, routing: bool = True) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    columns = {"epoch": epoch, "learning_rate": 1e-3 / epoch, "loss": 2 / epoch, "loss_base": 1.5 / epoch}
    for step, branch in enumerate(["base", "routed", "fused"] if routing else ["base"]):
        for group in ("all", "many", "medium", "few"):
            columns[f"val_{branch}_{group}"] = 0.7 + 0.03 * step + 0.1 * (1 - 1 / epoch)
    return pd.DataFrame(columns)


def make_content(
    class_count: int,
    images_per_class: int,
    routing: bool = True,
    gallery_images: int = 6,
    name: Callable[[int], str] = "class {}".format,
) -> ReportContent:
    classes = make_classes(class_count, name)
    predictions = make_predictions(class_count, images_per_class, routing)
    picked = pick_tail_images(predictions, classes, gallery_images)
    pixels = np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)
    sentences = [[f"A sentence on the {key} of {item.name}." for key in DIMENSIONS] for item in classes]
    prior_C = np.random.default_rng(1).dirichlet(np.full(class_count, 3.0))
    return ReportContent(
        title="mdpr: evaluation on the test set",
        results=Results.of(
            make_answers(predictions, variants=routing),
            classes,
            np.roll(np.arange(class_count), 1),
            np.log(prior_C),
            PICTURES,
            resamplings=200,
        ),
        history=make_history(20, routing),
        selected_epoch=17,
        prior_C=prior_C,
        gallery=make_gallery(
            picked, classes, sentences, dict.fromkeys(picked["index"].tolist(), Image.fromarray(pixels))
        ),
        lineage={"MLflow run": "0" * 32, "mlflow.source.git.commit": "a" * 40},
        audit=[
            AuditFinding(
                level="warning",
                check="other_rival",
                class_name=classes[0].name,
                dimension="differential_features",
                message=f"contrasts with {classes[1].name}",
            )
        ],
    )


def make_html(content: ReportContent) -> str:
    return render_report(content, make_figures(content))


@pytest.fixture(scope="session")
def content() -> Callable[..., ReportContent]:
    return make_content


@pytest.fixture(scope="session")
def html_of() -> Callable[[ReportContent], str]:
    return make_html


@pytest.fixture(scope="session")
def answers() -> Callable[..., Predictions]:
    return make_answers


@pytest.fixture(scope="session")
def classes() -> Callable[..., list[ClassInfo]]:
    return make_classes


@pytest.fixture(scope="session")
def predictions() -> Callable[..., pd.DataFrame]:
    return make_predictions
