"""Losses against their formulas written out plainly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdpr.training import losses

COUNTS = torch.tensor([1000, 100, 10])


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 3, generator=generator) * 3, torch.randint(3, (64,), generator=generator)


def loss_of(name: str, batch: tuple[Tensor, Tensor], tau: float = 1.0, scale: float = 1.0) -> Tensor:
    return losses.BASE_LOSSES[name](COUNTS, tau, scale)(*batch)


def test_logit_adjustment_is_cross_entropy_at_tau_zero_and_of_shifted_logits_otherwise(
    batch: tuple[Tensor, Tensor],
) -> None:
    torch.testing.assert_close(loss_of("logit_adjusted", batch, tau=0.0), F.cross_entropy(*batch))
    logits, label = batch
    prior = torch.tensor([1001, 101, 11]) / 1113
    expected = -(logits + 0.7 * prior.log()).log_softmax(-1)[torch.arange(64), label].mean()
    torch.testing.assert_close(loss_of("logit_adjusted", batch, tau=0.7), expected)


def test_balanced_softmax_is_the_softmax_weighted_by_counts(batch: tuple[Tensor, Tensor]) -> None:
    logits, label = batch
    weighted = COUNTS * logits.exp()
    expected = -(weighted / weighted.sum(-1, keepdim=True))[torch.arange(64), label].log().mean()
    torch.testing.assert_close(loss_of("balanced_softmax", batch), expected)


def test_ldam_takes_the_largest_margin_from_the_rarest_class(batch: tuple[Tensor, Tensor]) -> None:
    logits, label = batch
    margin = torch.tensor([(10 / n) ** 0.25 * 0.5 for n in (1000, 100, 10)])
    moved = logits.clone()
    moved[torch.arange(64), label] -= 20 * margin[label]
    torch.testing.assert_close(loss_of("ldam", batch, scale=20.0), F.cross_entropy(moved, label))


def test_focal_loss_weighs_each_image_by_one_minus_p_squared(batch: tuple[Tensor, Tensor]) -> None:
    logits, label = batch
    p = logits.softmax(-1)[torch.arange(64), label]
    torch.testing.assert_close(loss_of("focal", batch), -((1 - p) ** 2 * p.log()).mean())


def test_class_balanced_weights_have_mean_one_and_favour_rare_classes(batch: tuple[Tensor, Tensor]) -> None:
    logits, label = batch
    effective = torch.tensor([(1 - 0.9999**n) / (1 - 0.9999) for n in (1000, 100, 10)])
    weight = (1 / effective) * 3 / (1 / effective).sum()
    expected = (weight[label] * F.cross_entropy(logits, label, reduction="none")).mean()
    torch.testing.assert_close(loss_of("class_balanced", batch), expected, rtol=1e-4, atol=1e-5)
    assert weight.argmax() == 2


def test_prior_alignment_is_zero_for_equal_directions_and_one_for_orthogonal_ones() -> None:
    prior_CV = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    same = torch.tensor([[[0.3, 0.0], [0.0, 0.9]]])
    assert losses.prior_alignment(same, prior_CV).item() == pytest.approx(0, abs=1e-6)
    assert losses.prior_alignment(same.flip(-1), prior_CV).item() == pytest.approx(1)


def test_knowledge_alignment_is_the_divergence_after_g_with_a_detached_target() -> None:
    torch.manual_seed(0)
    align, z_Bd, m_Bd = nn.Linear(6, 4), torch.randn(3, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    loss = losses.knowledge_alignment(z_Bd, m_Bd, align)
    target = (align(m_Bd) / 2).softmax(-1)
    routed = (align(z_Bd / z_Bd.norm(dim=-1, keepdim=True)) / 2).softmax(-1)
    torch.testing.assert_close(loss, (target * (target / routed).log()).sum(-1).mean())
    gradient_z, gradient_m = torch.autograd.grad(loss, [z_Bd, m_Bd], allow_unused=True)
    assert gradient_z.abs().sum() > 0
    assert gradient_m is None
    unit = F.normalize(m_Bd.detach(), dim=-1)
    assert losses.knowledge_alignment(unit, unit, align).item() == pytest.approx(0, abs=1e-6)


def test_ramp_starts_at_one_hundredth_and_stays_below_one() -> None:
    values = [losses.ramp(epoch, 20) for epoch in range(20)]
    assert values[0] == pytest.approx(0.01)
    assert values[10] == pytest.approx(0.505)
    assert values == sorted(values)
    assert max(values) <= 1
