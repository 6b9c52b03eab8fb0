"""A step split into micro-batches against the whole: the same terms, the same gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mdpr.images.loading import make_loader, plan_epoch
from mdpr.model.classifier import Outputs
from mdpr.training.loop import Precision, accumulate_gradients
from mdpr.training.losses import BASE_LOSSES

IMAGES = 14


def gradients(bench: Any, micro_batch_size: int | None, precision: str = "fp32", **changes: Any) -> tuple[Any, Any]:
    """The terms of one step over the same images and every gradient, dropout off: it differs by micro-batch."""
    objective = bench.objective(router_dropout=0.0, **changes)
    (step,) = plan_epoch(np.arange(IMAGES), IMAGES, micro_batch_size)
    loader = make_loader(bench.data.train, [part.indices for part in step])
    how = Precision(precision, torch.device("cpu"))
    terms = accumulate_gradients(objective, zip(step, loader, strict=True), how, seed=0, epoch=1, step=0)
    found = {name: value.grad for name, value in objective.model.named_parameters() if value.grad is not None}
    scale = how.scaler.get_scale() if how.scaler.is_enabled() else 1.0
    return terms, {name: gradient / scale for name, gradient in found.items()}


@pytest.mark.parametrize("fusion", ["mean", "weighted"])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 5])
def test_micro_batches_give_the_terms_and_gradients_of_the_whole(
    bench: Any, micro_batch_size: int, fusion: str
) -> None:
    whole_terms, whole = gradients(bench, None, fusion=fusion)
    terms, split = gradients(bench, micro_batch_size, fusion=fusion)
    assert terms.keys() == whole_terms.keys() >= {"base", "semantic", "prior_alignment", "knowledge_alignment"}
    for name, term in terms.items():
        torch.testing.assert_close(term, whole_terms[name], rtol=1e-5, atol=1e-7)
    assert split.keys() == whole.keys()
    for name, gradient in split.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-5 * float(whole[name].abs().max()))


def test_prior_alignment_of_weight_0_is_left_out_and_changes_no_gradient(bench: Any) -> None:
    loss = bench.params.loss
    (terms, without), (_, vanishing) = (
        gradients(bench, None, loss=loss.model_copy(update={"prior_alignment": weight})) for weight in (0.0, 1e-38)
    )
    assert terms["prior_alignment"].item() == 0
    torch.testing.assert_close(without, vanishing, rtol=0, atol=1e-30)


@pytest.mark.parametrize("base_loss", list(BASE_LOSSES))
def test_every_term_is_a_mean_over_images_in_float64(bench: Any, base_loss: str) -> None:
    """The objective itself, on outputs of an uneven split: equal to the last digits of float64."""
    objective = bench.objective(base_loss=base_loss, fusion="weighted")
    for module in (objective.model.align, objective.model.fusion):  # the backbone is shared with other tests
        module.double()
    objective.prior_CV, objective.summary_Cd = objective.prior_CV.double(), objective.summary_Cd.double()
    outputs, label_B = random_outputs(objective)
    whole = objective.terms(outputs, label_B, epoch=1)
    split = {name: torch.zeros((), dtype=torch.float64) for name in whole}
    for rows in (slice(0, 5), slice(5, 10), slice(10, IMAGES)):
        part = replace(outputs, **{name: value[rows] for name, value in tensors(outputs).items()})
        share = len(label_B[rows]) / IMAGES
        for name, term in objective.terms(part, label_B[rows], epoch=1).items():
            split[name] = split[name] + share * term
    leaves = [value for value in tensors(outputs).values() if value.requires_grad]
    for name, term in whole.items():
        torch.testing.assert_close(split[name], term, rtol=1e-12, atol=1e-14)
    ours, theirs = (
        torch.autograd.grad(sum(terms.values()), leaves, allow_unused=True, retain_graph=True)  # type: ignore[arg-type]
        for terms in (split, whole)
    )
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


def tensors(outputs: Outputs) -> dict[str, Tensor]:
    """The fields that these outputs have."""
    return {name: value for name, value in vars(outputs).items() if value is not None}


def random_outputs(objective: Any) -> tuple[Outputs, Tensor]:
    generator = torch.Generator().manual_seed(0)
    C, V = objective.prior_CV.shape
    d = objective.summary_Cd.shape[1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    base_BC, routed_BC, true_Bd = draw(IMAGES, C), draw(IMAGES, C), draw(IMAGES, d)
    weights_BCV = draw(IMAGES, C, V).softmax(dim=-1)
    fused_BC = objective.model.fusion(base_BC.detach(), routed_BC.detach())
    outputs = Outputs(draw(IMAGES, d), base_BC, fused_BC, routed_BC, weights_BCV, true_Bd)
    return outputs, torch.randint(C, (IMAGES,), generator=generator)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.02)])
@pytest.mark.parametrize(("prompting", "head"), [("maple", "text"), ("adaptformer", "cosine"), ("lora", "cosine")])
def test_half_precision_stays_close_and_keeps_what_is_learned_in_float32(
    bench: Any, prompting: str, head: str, precision: str, tolerance: float
) -> None:
    exact, reference = gradients(bench, 5, prompting=prompting, head=head)
    terms, found = gradients(bench, 5, precision, prompting=prompting, head=head)
    assert {value.dtype for value in (*terms.values(), *found.values())} == {torch.float32}
    for name, term in terms.items():
        assert term.item() == pytest.approx(exact[name].item(), rel=tolerance, abs=tolerance * 0.1)
    assert any(not torch.equal(found[name], reference[name]) for name in reference), "autocast was on"


def test_terms_are_computed_in_float32_under_autocast(bench: Any) -> None:
    objective = bench.objective()
    outputs, label_B = random_outputs(objective)
    half = replace(outputs, **{name: value.bfloat16() for name, value in tensors(outputs).items()})
    same = replace(outputs, **{name: value.bfloat16().float() for name, value in tensors(outputs).items()})
    with torch.autocast("cpu", torch.bfloat16):
        under = objective.terms(half, label_B, epoch=1)
    for name, term in objective.terms(same, label_B, epoch=1).items():
        assert torch.equal(under[name], term), name
