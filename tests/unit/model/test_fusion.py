"""Fusions against their formulas; every one gives log-probabilities."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.artifacts import Probe
from mdpr.errors import ArtifactError
from mdpr.model.backbone import Backbone
from mdpr.model.fusion import FUSIONS, GeneralizedLogitAdjustment, Validated, build_fusion

C, D = 4, 8


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base, routed, expert = torch.randn(3, 6, C, generator=generator, dtype=torch.float64) * 3
    return base, routed, expert


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("routing", [True, False])
def test_every_fusion_gives_log_probabilities(
    name: str, routing: bool, logits: tuple[Tensor, ...], backbone: Backbone
) -> None:
    base, routed, expert = logits
    fused = build_fusion(name, None, C, backbone)(base, routed if routing else None, expert)
    torch.testing.assert_close(fused.exp().sum(dim=-1), torch.ones(6, dtype=torch.float64))
    if not routing and name != "gla":
        torch.testing.assert_close(fused, F.log_softmax(base, dim=-1))


def test_mean_is_the_papers_and_weighted_starts_there(logits: tuple[Tensor, ...], backbone: Backbone) -> None:
    base, routed, _ = logits
    expected = ((base + routed) / 2).softmax(dim=-1)
    torch.testing.assert_close(build_fusion("mean", None, C, backbone)(base, routed).exp(), expected)
    torch.testing.assert_close(build_fusion("weighted", None, C, backbone)(base, routed).exp(), expected)


def test_validated_takes_the_best_candidate_of_equal_ones_the_nearest_to_the_mean(
    logits: tuple[Tensor, ...], backbone: Backbone
) -> None:
    base, routed, _ = logits
    fusion = build_fusion("validated", None, C, backbone)
    assert isinstance(fusion, Validated)
    torch.testing.assert_close(fusion(base, routed).exp(), ((base + routed) / 2).softmax(dim=-1))
    for accuracies, weight in (
        ([0.5] * 21, 0.5),
        ([0.1] * 20 + [0.2], 1.0),
        ([0.9, 0.9, 0.9] + [0.2] * 18, 0.1),
    ):
        assert fusion.CANDIDATES[fusion.choose(accuracies)] == weight
        assert fusion.base_weight.item() == pytest.approx(weight)
    expected = (0.1 * base + 0.9 * routed).log_softmax(dim=-1)
    torch.testing.assert_close(fusion(base, routed), expected, rtol=1e-6, atol=1e-6)
    assert "base_weight" in dict(fusion.named_buffers()), "kept with the learned weights"


def test_entropy_leans_on_the_surer_branch_of_each_image(backbone: Backbone) -> None:
    sure, unsure = torch.tensor([[9.0, 0, 0, 0]]), torch.tensor([[0.0, 0.1, 0, 0]])
    fusion = build_fusion("entropy", None, C, backbone)
    weight = math.exp(1) / (math.exp(1) + 1)  # sureness 1 against 0
    expected = F.log_softmax(weight * sure + (1 - weight) * unsure, dim=-1)
    torch.testing.assert_close(fusion(sure, unsure), expected, rtol=0.01, atol=0.02)
    torch.testing.assert_close(fusion(sure, unsure), fusion(unsure, sure))


def test_gla_multiplies_three_experts_the_third_debiased(logits: tuple[Tensor, ...], backbone: Backbone) -> None:
    base, routed, _ = logits
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1])
    text_Cd = F.normalize(torch.randn(C, D), dim=-1)
    probe = Probe(
        np.zeros(C, dtype=np.int64),
        np.ones(C),
        prior.log().numpy(),
        text_Cd.numpy(),
        text_Cd.numpy(),
        np.array([89, 8, 0, 0]) + 1,
        10.0,
        backbone.fingerprint,
    )
    fusion = build_fusion("gla", probe, C, backbone)
    assert isinstance(fusion, GeneralizedLogitAdjustment)
    x_Bd = F.normalize(torch.randn(6, D), dim=-1)
    expert = fusion.expert(x_Bd, torch.tensor(10.0))
    torch.testing.assert_close(expert, 10 * x_Bd @ text_Cd.T - prior.log())
    product = base.softmax(-1) * routed.softmax(-1) * expert.softmax(-1)
    torch.testing.assert_close(fusion(base, routed, expert).exp(), product / product.sum(-1, keepdim=True))
    uncompensated = build_fusion("gla", probe, C, backbone, base_loss="ce")
    log_pi = (torch.tensor([91.0, 10.0, 2.0, 2.0]) / 105).log()
    torch.testing.assert_close(uncompensated(base, routed, expert), fusion(base - log_pi, routed, expert))
    with pytest.raises(ArtifactError, match=r"probe was made with other, the backbone is mdpr-tiny:\w+: rerun"):
        build_fusion("gla", replace(probe, fingerprint="other"), C, backbone)


def test_gla_takes_the_temperatures_that_explain_validation_best(backbone: Backbone) -> None:
    """Labels are drawn from logits of a known temperature: the inverse of what they were scaled by is found."""
    generator = torch.Generator().manual_seed(0)
    logits_NC = 2 * torch.randn(20_000, C, generator=generator)
    label_N = torch.multinomial(logits_NC.softmax(dim=-1), 1, generator=generator)[:, 0]
    fusion = build_fusion("gla", None, C, backbone)
    assert isinstance(fusion, GeneralizedLogitAdjustment)
    parts = zip(label_N.split(5000), logits_NC.split(5000), strict=True)
    batches = [(label_n, (4 * logits_nC, None, logits_nC / 2)) for label_n, logits_nC in parts]
    fusion.calibrate(batches, lambda value: value)
    base, routed, expert = fusion.inverse_temperature_3.tolist()
    assert (base, expert) == pytest.approx((0.25, 2.0), rel=0.2)
    assert routed == fusion.CANDIDATES[0]  # there is none, so it counts for nothing
    fused = fusion(4 * logits_NC, None, logits_NC / 2)
    product = F.log_softmax(base * 4 * logits_NC, -1) + F.log_softmax(expert * logits_NC / 2, -1)
    torch.testing.assert_close(fused, F.log_softmax(product, dim=-1))
    build_fusion("mean", None, C, backbone).calibrate(iter([pytest.fail]), lambda value: value)  # type: ignore[list-item]
