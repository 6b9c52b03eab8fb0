"""A made-up model that knows log p(x | c) up to a scale and a bias, its test set, and logs of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mdpr.artifacts.prediction_log import Answers, LogSource, write_prediction_log
from mdpr.monitoring.sample import Reference, Sample

NAMES = ("boot", "bag", "coat", "dress", "shirt", "hat")
CLASSES = len(NAMES)
SOURCE = LogSource(model="shoes", version="3", model_digest="d", class_names=NAMES)
SHOTS = ("many", "many", "medium", "medium", "few", "few")
EVEN_C = np.full(CLASSES, 1 / CLASSES)
SHIFTED_C = np.array([0.02, 0.03, 0.05, 0.2, 0.3, 0.4])

MakeAnswers = Callable[..., Answers]


def write_per_class(folder: Path, names: Sequence[str], shots: Sequence[str]) -> Path:
    """per_class.csv as evaluate writes it beside the reference."""
    table = pd.DataFrame({"index": range(len(names)), "class": names, "shot": shots, "train_images": 1})
    table.assign(test_images=1, zero_shot_accuracy=1.0, base_accuracy=1.0).to_csv(folder / "per_class.csv", index=False)
    return folder / "per_class.csv"


@pytest.fixture
def answers() -> MakeAnswers:
    """answers(shares, images, seed, moved=0) -> labelled answers; `moved` shifts the features of every image."""

    def make(share_C: np.ndarray, images: int, seed: int, moved: float = 0.0) -> Answers:
        generator = np.random.default_rng(seed)
        means_Cd = 2.0 * np.eye(CLASSES)
        label_N = generator.choice(CLASSES, images, p=share_C)
        x_Nd = means_Cd[label_N] + generator.normal(size=(images, CLASSES)) + moved
        score_NC = -((x_Nd[:, None] - means_Cd) ** 2).sum(-1) / 2
        logits_NC = 0.7 * score_NC + np.linspace(-0.5, 0.5, CLASSES)  # neither calibrated nor unbiased
        log_NC = logits_NC - np.log(np.exp(logits_NC).sum(axis=1, keepdims=True))
        class_NK = np.argsort(-log_NC, axis=1).astype(np.int32)
        best_NK = np.take_along_axis(log_NC, class_NK, axis=1).astype(np.float32)
        return Answers(class_NK, best_NK, x_Nd.astype(np.float32), label_N)

    return make


@pytest.fixture
def reference(answers: MakeAnswers) -> Reference:
    return Reference(SOURCE, answers(EVEN_C, 3000, seed=0), SHOTS)


@pytest.fixture
def sample() -> Callable[[Answers], Sample]:
    """sample(answers) -> them as if read from a log."""

    def make(found: Answers) -> Sample:
        now = datetime.now(UTC)
        counted_C = np.bincount(found.top1_N, minlength=CLASSES)
        return Sample(len(found), found, counted_C, found.embedding_Nd, ("",), (), 0, 0, now, now)

    return make


@pytest.fixture
def write_log() -> Callable[..., None]:
    """write_log(path, answers, embeddings=True, **source): without the labels, as a server does."""

    def write(path: Path, found: Answers, *, embeddings: bool = True, **source: str | int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        embedding_Nd = found.embedding_Nd if embeddings else None
        unlabelled = Answers(found.class_NK, found.log_probability_NK, embedding_Nd)
        write_prediction_log(path, SOURCE.model_copy(update=source), unlabelled)

    return write
