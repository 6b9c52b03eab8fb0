"""Changing the prior of answers by Bayes' rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdpr.artifacts import ModelConfig
from mdpr.errors import ArtifactError, ConfigError
from mdpr.model.inference import Classifier, DeploymentPrior, assumed_prior, read_prior
from mdpr.params import BackboneParams, TuneParams

NAMES = ("boot", "bag", "coat")
COUNTS = (100, 10, 1)


@pytest.fixture
def config() -> Callable[..., ModelConfig]:
    def make(**tune: Any) -> ModelConfig:
        return ModelConfig(
            backbone=BackboneParams(),
            fingerprint="f",
            tune=TuneParams(epochs=1, **tune),
            class_names=NAMES,
            train_images=COUNTS,
            knowledge_digest="k",
            background="white",
            selected_epoch=1,
            tau=0.0,
            val_accuracy={},
        )

    return make


def test_the_change_is_bayes_rule() -> None:
    generator = np.random.default_rng(0)
    likelihood_NC = generator.random((50, 3))
    before_C, after_C = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.1, 0.8])

    def posterior(prior_C: np.ndarray) -> torch.Tensor:
        joint_NC = likelihood_NC * prior_C
        return torch.from_numpy(joint_NC / joint_NC.sum(axis=1, keepdims=True))

    prior = DeploymentPrior("test", torch.from_numpy(np.log(after_C / before_C)))
    torch.testing.assert_close(prior.adjust(posterior(before_C).log()).exp(), posterior(after_C))


@pytest.mark.parametrize(
    ("tune", "power"),
    [
        ({"base_loss": "ce"}, 1),
        ({"base_loss": "focal"}, 1),
        ({"base_loss": "logit_adjusted"}, 0),
        ({"base_loss": "logit_adjusted", "loss": {"tau": 0.5}}, 0.5),
        ({"base_loss": "balanced_softmax"}, 0),
        ({"base_loss": "ce", "sampling": "class_balanced"}, 0),
        ({"base_loss": "ce", "fusion": "gla"}, 0),
    ],
)
def test_what_a_model_assumes_follows_from_its_loss(
    config: Callable[..., ModelConfig], tune: dict[str, Any], power: float
) -> None:
    expected_C = np.array(COUNTS, dtype=float) ** power
    np.testing.assert_allclose(assumed_prior(config(**tune)).numpy(), expected_C / expected_C.sum())


def test_the_prior_that_is_assumed_changes_nothing(config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    np.testing.assert_allclose(read_prior("uniform", config(base_loss="logit_adjusted")).log_ratio_C, 0, atol=1e-6)
    share_C = np.array(COUNTS) / sum(COUNTS)
    (tmp_path / "p.json").write_text(json.dumps(dict(zip(NAMES, share_C.tolist(), strict=True))))
    found = read_prior(str(tmp_path / "p.json"), config(base_loss="ce"))
    np.testing.assert_allclose(found.log_ratio_C, 0, atol=1e-6)
    assert "p.json" in str(found)


def test_a_monitoring_brings_its_own_reference(config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    shares, prior = {"boot": 0.5, "bag": 0.25, "coat": 0.25}, {"boot": 0.25, "bag": 0.25, "coat": 0.5}
    path = tmp_path / "monitor.json"
    path.write_text(json.dumps({"format": "mdpr-monitor/1", "shares": shares, "model_prior": prior}))
    found = read_prior(str(path), config(base_loss="ce"))
    np.testing.assert_allclose(found.log_ratio_C, np.log([2, 1, 0.5]), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "must be uniform or a JSON file"),
        ("{", "p.json"),
        ('{"boot": 0.5, "bag": 0.5}', "no share of the model's class coat"),
        ('{"boot": 0.5, "bag": 0.3, "coat": 0.1, "hat": 0.1}', "hat is not a class"),
        ('{"boot": 0.5, "bag": 0.5, "coat": 0}', "coat = 0 must be a number above 0"),
        ('{"boot": 0.5, "bag": 0.5, "coat": true}', "coat = True"),
        ('{"boot": 0.5, "bag": 0.5, "coat": 0.5}', "sum to 1.5"),
        ('{"shares": 3}', "share per class"),
    ],
)
def test_a_prior_that_does_not_fit_is_one_line(
    config: Callable[..., ModelConfig], tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ConfigError, match=words) as raised:
        read_prior(str(tmp_path / "p.json"), config())
    assert "\n" not in str(raised.value)


def test_a_prior_that_is_not_there_is_one_line(config: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ConfigError, match="uniform or a JSON file"):
        read_prior("nowhere.json", config())


@pytest.mark.parametrize("model", ["data/nowhere", "runs:/0123456789abcdef", "models:shoes@champion", "model.zip"])
def test_what_is_no_model_is_named_with_what_would_be_one(model: str) -> None:
    with pytest.raises(ArtifactError, match=f"^{model} is not a folder: .* models:/NAME@ALIAS"):
        Classifier.load(model)
