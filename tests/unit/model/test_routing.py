"""The factorised router equals nn.MultiheadAttention on repeated tensors: outputs and every gradient, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mdpr.errors import ConfigError
from mdpr.model import routing
from mdpr.model.routing import Router


def repeated(router: Router, image_Bd: Tensor, sentences_CVd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The published form: queries repeated C times, keys and values B times, one call of the attention module."""
    B, (C, V, d) = len(image_Bd), sentences_CVd.shape
    query = image_Bd[:, None].expand(B, C, d).reshape(B * C, 1, d)
    keys = sentences_CVd[None].expand(B, C, V, d).reshape(B * C, V, d)
    z, weights = router.attention(query, keys, keys, need_weights=True, average_attn_weights=True)
    return z.view(B, C, d), weights.view(B, C, V), F.normalize(z.view(B, C, d), dim=-1)


def build(B: int, C: int, V: int, H: int, e: int, seed: int) -> tuple[Router, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    router = Router(H * e, H).double().eval()
    with torch.no_grad():  # biases start at zero: random ones test their terms too
        router.attention.in_proj_bias.normal_()
        router.attention.out_proj.bias.normal_()
    image_Bd = F.normalize(torch.randn(B, H * e, dtype=torch.float64), dim=-1).requires_grad_()
    sentences_CVd = torch.randn(C, V, H * e, dtype=torch.float64).requires_grad_()
    return router, image_Bd, sentences_CVd, torch.randint(C, (B,))


@pytest.fixture(autouse=True)
def _float64_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router computes in float32 at least; the identity is tested in float64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 5),
    C=st.integers(1, 7),
    V=st.integers(1, 6),
    H=st.sampled_from([1, 2, 4]),
    e=st.integers(1, 5),
    block=st.sampled_from([1, 30, 2**25]),
    seed=st.integers(0, 2**16),
)
def test_outputs_and_gradients_equal_the_repeated_form(
    B: int, C: int, V: int, H: int, e: int, block: int, seed: int
) -> None:
    router, image_Bd, sentences_CVd, label_B = build(B, C, V, H, e, seed)
    leaves = [image_Bd, sentences_CVd, *router.parameters()]
    mix = torch.randn(B, C, dtype=torch.float64)

    before = dict(routing.BLOCK_ELEMENTS)
    routing.BLOCK_ELEMENTS["cpu"] = block
    try:
        ours = router(image_Bd, router.table(sentences_CVd), label_B)
        loss = (ours.cosine_BC * mix).sum() + ours.weights_BCV.square().sum() + ours.true_Bd.square().sum()
        our_gradients = torch.autograd.grad(loss, leaves)
    finally:
        routing.BLOCK_ELEMENTS.update(before)

    z_BCd, weights_BCV, unit_BCd = repeated(router, image_Bd, sentences_CVd)
    cosine_BC = (image_Bd[:, None] * unit_BCd).sum(-1)
    true_Bd = z_BCd[torch.arange(B), label_B]
    reference = (cosine_BC * mix).sum() + weights_BCV.square().sum() + true_Bd.square().sum()
    gradients = torch.autograd.grad(reference, leaves)

    torch.testing.assert_close(ours.cosine_BC, cosine_BC, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.weights_BCV, weights_BCV, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.true_Bd, true_Bd, rtol=1e-9, atol=1e-9)
    for our_gradient, gradient in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-6, atol=1e-7)


class Allocations(TorchDispatchMode):
    """The sizes of all tensors that operations return, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers += [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        return out


@pytest.mark.parametrize("training", [False, True])
def test_no_operation_makes_a_tensor_of_images_times_classes_times_width(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, nothing has B*C*d numbers, nor more than a block, the attention or the sentences have."""
    B, C, V, H, e = 64, 48, 5, 2, 64  # d = 128 is much more than V * H = 10
    router, image_Bd, sentences_CVd, label_B = build(B, C, V, H, e, seed=0)
    router.train(training)
    router.dropout = 0.2
    monkeypatch.setitem(routing.BLOCK_ELEMENTS, "cpu", 2**13)
    with Allocations() as made:
        routed = router(image_Bd, router.table(sentences_CVd), label_B)
        (routed.cosine_BC.sum() + routed.weights_BCV.square().sum() + routed.true_Bd.sum()).backward()
    bound = max(2**13, C * V * H * B, C * (V * H) ** 2, C * V * H * e, 3 * (H * e) ** 2)
    assert bound < B * C * H * e
    assert made.numbers
    assert max(made.numbers) <= bound


def test_gradients_with_dropout_are_those_of_the_same_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mask drawn again, finite differences agree with backward (and no block loses its mask)."""
    router, image_Bd, sentences_CVd, label_B = build(2, 3, 4, 2, 3, seed=3)
    router.train()
    router.dropout = 0.4
    monkeypatch.setitem(routing.BLOCK_ELEMENTS, "cpu", 1)

    def loss(image_Bd: Tensor, sentences_CVd: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(11)
        names = [name for name, _ in router.named_parameters()]

        def route(*arguments: Any) -> Any:
            return router(image_Bd, router.table(sentences_CVd), label_B)

        with torch.nn.utils.stateless._reparametrize_module(router, dict(zip(names, weights, strict=True))):
            routed = route()
        return routed.cosine_BC, routed.weights_BCV, routed.true_Bd

    assert torch.autograd.gradcheck(loss, (image_Bd, sentences_CVd, *router.parameters()), nondet_tol=0.0)


def test_dropout_acts_in_training_alone() -> None:
    router, image_Bd, sentences_CVd, _ = build(4, 6, 5, 2, 8, seed=1)
    router.dropout = 0.5
    table = router.table(sentences_CVd)
    assert torch.equal(router(image_Bd, table).cosine_BC, router(image_Bd, table).cosine_BC)
    router.train()
    assert not torch.equal(router(image_Bd, table).cosine_BC, router(image_Bd, table).cosine_BC)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"tune\.router_heads = 7 does not divide the joint embedding width 128"):
        Router(128, 7)


def test_parameters_are_those_of_multihead_attention() -> None:
    state = Router(16, 4).state_dict()
    assert set(state) == {f"attention.{name}" for name in nn.MultiheadAttention(16, 4).state_dict()}
