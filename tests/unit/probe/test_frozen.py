"""Confusion, most-confused classes and hidden prior against definitions; the simple classifiers on frozen features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as reference

from mdpr.artifacts import LinearHead, read_logistic, write_logistic
from mdpr.errors import ArtifactError
from mdpr.probe import prior
from mdpr.probe.frozen import (
    SHRINKAGES,
    choose_shrinkage,
    confusion_matrix,
    estimate_log_prior,
    few_per_class,
    fit_logistic,
    is_affordable,
    rivals,
)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 2**16))
def test_confusion_equals_scikit_learn(extra: list[int], seed: int) -> None:
    label_N = np.array([0, 1, 2, 3, *extra])  # every class has an image
    predicted_N = np.random.default_rng(seed).integers(0, 4, len(label_N))
    ours = confusion_matrix(label_N, predicted_N, 4)
    np.testing.assert_allclose(ours, reference(label_N, predicted_N, labels=range(4), normalize="true"), rtol=1e-6)


def test_rival_is_the_class_most_confused_with_and_never_the_class_itself() -> None:
    confusion_CC = np.array([[0.9, 0.0, 0.1], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]])
    nearest = np.eye(3) + 0.1  # class features: 0 and 2 are close
    nearest[0] = nearest[2] + 0.2
    text_Cd = nearest / np.linalg.norm(nearest, axis=1, keepdims=True)
    found = rivals(confusion_CC, text_Cd)
    assert found[0] == 2  # the only one it is confused with
    assert found[1] in (0, 2)  # a tie: the nearer by text
    assert found[2] == 0  # never confused: the nearest by text


@given(st.integers(2, 8), st.integers(0, 2**16))
def test_no_class_is_its_own_rival(classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    confusion_CC = generator.dirichlet(np.ones(classes), classes) * (generator.random((classes, classes)) > 0.5)
    text_Cd = generator.normal(size=(classes, 4))
    text_Cd /= np.linalg.norm(text_Cd, axis=1, keepdims=True)
    assert (rivals(confusion_CC, text_Cd) != np.arange(classes)).all()


def biased_logits(prior_C: torch.Tensor, per_class: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are log p(x | c) + log prior for Gaussian features: subtracting log prior is exactly optimal."""
    generator = torch.Generator().manual_seed(seed)
    classes = len(prior_C)
    means_Cd = 1.5 * torch.eye(classes)
    label_N = torch.arange(classes).repeat_interleave(torch.tensor(per_class))
    x_Nd = means_Cd[label_N] + torch.randn(len(label_N), classes, generator=generator)
    return -((x_Nd[:, None] - means_Cd) ** 2).sum(-1) / 2 + prior_C.log(), label_N


def problem(prior_C: torch.Tensor, per_class: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`biased_logits` as features that are the logits, of classes that are the unit vectors."""
    logits_NC, label_N = biased_logits(prior_C, per_class, seed)
    return logits_NC, torch.eye(len(prior_C)), label_N


def prior_of(logits_NC: torch.Tensor, label_N: torch.Tensor, shrinkage: float) -> torch.Tensor:
    return estimate_log_prior(logits_NC, torch.eye(logits_NC.shape[1]), label_N, shrinkage)


def test_prior_is_found_again_from_a_long_tailed_sample() -> None:
    prior_C = torch.tensor([0.5, 0.05, 0.2, 0.02, 0.23])
    logits_NC, label_N = biased_logits(prior_C, [4000, 2000, 1000, 500, 250], seed=0)
    estimated = prior_of(logits_NC, label_N, shrinkage=0.0).exp()
    assert estimated.sum().item() == pytest.approx(1)
    torch.testing.assert_close(estimated.float(), prior_C, rtol=0.25, atol=0.02)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_shrinkage_pulls_towards_uniform_and_holds_classes_of_one_image(seed: int) -> None:
    logits_NC, label_N = biased_logits(torch.tensor([0.6, 0.3, 0.1]), [50, 10, 1], seed)
    loose = prior_of(logits_NC, label_N, shrinkage=0.01)
    tight = prior_of(logits_NC, label_N, shrinkage=1.0)
    assert tight.var() <= loose.var() + 1e-9
    assert tight.isfinite().all()


def test_prior_does_not_depend_on_the_order_of_images() -> None:
    logits_NC, label_N = biased_logits(torch.tensor([0.6, 0.3, 0.1]), [50, 10, 5], seed=3)
    order = torch.randperm(len(label_N), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        prior_of(logits_NC, label_N, 0.05),
        prior_of(logits_NC[order], label_N[order], 0.05),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_chosen_shrinkage_fades_with_the_images() -> None:
    prior_C = torch.tensor([0.6, 0.25, 0.1, 0.05])
    many, few = ([choose_shrinkage(*problem(prior_C, [n] * 4, seed)) for seed in range(5)] for n in (2000, 4))
    assert max(many) <= 0.003
    assert sum(few) > sum(many)
    even = torch.full((4,), 0.25)
    assert choose_shrinkage(*problem(even, [6] * 4, seed=0)) > 0
    assert choose_shrinkage(*problem(prior_C, [1] * 4, seed=0)) == SHRINKAGES[-1]


def test_blocks_of_images_do_not_change_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NC, label_N = biased_logits(torch.tensor([0.6, 0.3, 0.1]), [50, 10, 5], seed=3)
    whole = prior_of(logits_NC, label_N, 0.05)
    monkeypatch.setattr(prior, "BLOCK_CELLS", 21)
    torch.testing.assert_close(prior_of(logits_NC, label_N, 0.05), whole, rtol=0, atol=1e-9)


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
