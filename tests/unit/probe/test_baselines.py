"""Simple classifiers on frozen features. Shapes: N images, C classes, d width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mdpr.artifacts import LinearHead, read_logistic, write_logistic
from mdpr.errors import ArtifactError
from mdpr.probe.baselines import few_per_class, fit_logistic, is_affordable


def clouds(classes: int, images: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit-length features around a direction per class."""
    rng = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(classes), images)
    image_Nd = 4 * np.eye(classes, 8)[label_N] + rng.normal(size=(len(label_N), 8))
    return (image_Nd / np.linalg.norm(image_Nd, axis=1, keepdims=True)).astype(np.float32), label_N


@pytest.mark.parametrize("classes", [2, 5])
def test_the_regression_finds_rare_classes_too(classes: int) -> None:
    train_Nd, label_N = clouds(classes, [200, *[5] * (classes - 1)])
    val_Md, val_label_M = clouds(classes, [30] * classes, seed=1)
    head = fit_logistic(train_Nd, label_N, val_Md, val_label_M)
    right_M = head.logits(val_Md).argmax(axis=1) == val_label_M
    assert min(right_M[val_label_M == c].mean() for c in range(classes)) > 0.8
    assert head.weight_Cd.shape == (classes, 8)


def test_without_validation_there_is_a_regression_and_a_class_without_images_is_never_named() -> None:
    train_Nd, label_N = clouds(4, [20, 20, 0, 20])
    head = fit_logistic(train_Nd, label_N, train_Nd[:0], label_N[:0])
    assert set(head.logits(train_Nd).argmax(axis=1)) == {0, 1, 3}


def test_only_so_many_images_of_a_class_and_only_so_large_data_are_fitted() -> None:
    label_N = np.array([0, 1, 0, 0, 1, 2, 0])
    assert few_per_class(label_N, 2).tolist() == [0, 1, 2, 4, 5]
    assert is_affordable(20_000, 1_000, 512)
    assert not is_affordable(400_000, 8_142, 512)
    assert not is_affordable(16_284, 8_142, 128)  # by memory


def test_the_file_comes_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert read_logistic(tmp_path, 3) is None
    head = LinearHead(np.ones((3, 8), np.float32), np.zeros(3, np.float32), 10.0)
    write_logistic(tmp_path, head)
    found = read_logistic(tmp_path, 3)
    assert found is not None
    np.testing.assert_array_equal(found.weight_Cd, head.weight_Cd)
    assert found.inverse_penalty == 10.0
    with pytest.raises(ArtifactError, match="no classifier of 4 classes"):
        read_logistic(tmp_path, 4)
    path = tmp_path / "logistic.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\0")
    with pytest.raises(ArtifactError, match="run probe again"):
        read_logistic(tmp_path, 3)
