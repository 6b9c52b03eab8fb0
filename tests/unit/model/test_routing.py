"""Routers in float64: the attention equals nn.MultiheadAttention on repeated tensors, outputs and every gradient; the
paired gate starts as the mean of CLIP's own sentence logits."""

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
from mdpr.model.routing import GATE_WIDTH, ROUTERS, AttentionRouter, PairedGate, Router
from mdpr.params import TuneParams


def repeated(router: AttentionRouter, image_Bd: Tensor, sentences_CVd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The published form: queries repeated C times, keys and values B times, one call of the attention module."""
    B, (C, V, d) = len(image_Bd), sentences_CVd.shape
    query = image_Bd[:, None].expand(B, C, d).reshape(B * C, 1, d)
    keys = sentences_CVd[None].expand(B, C, V, d).reshape(B * C, V, d)
    z, weights = router.attention(query, keys, keys, need_weights=True, average_attn_weights=True)
    return z.view(B, C, d), weights.view(B, C, V), F.normalize(z.view(B, C, d), dim=-1)


def build(B: int, C: int, V: int, H: int, e: int, seed: int) -> tuple[AttentionRouter, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    router = AttentionRouter(H * e, H).double().eval()
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
        loss = (ours.similarity_BC * mix).sum() + ours.weights_BCV.square().sum() + ours.true_Bd.square().sum()
        our_gradients = torch.autograd.grad(loss, leaves)
    finally:
        routing.BLOCK_ELEMENTS.update(before)

    z_BCd, weights_BCV, unit_BCd = repeated(router, image_Bd, sentences_CVd)
    similarity_BC = (image_Bd[:, None] * unit_BCd).sum(-1)
    true_Bd = z_BCd[torch.arange(B), label_B]
    reference = (similarity_BC * mix).sum() + weights_BCV.square().sum() + true_Bd.square().sum()
    gradients = torch.autograd.grad(reference, leaves)

    torch.testing.assert_close(ours.similarity_BC, similarity_BC, rtol=1e-9, atol=1e-9)
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
        (routed.similarity_BC.sum() + routed.weights_BCV.square().sum() + routed.true_Bd.sum()).backward()
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
        return routed.similarity_BC, routed.weights_BCV, routed.true_Bd

    assert torch.autograd.gradcheck(loss, (image_Bd, sentences_CVd, *router.parameters()), nondet_tol=0.0)


def test_dropout_acts_in_training_alone() -> None:
    router, image_Bd, sentences_CVd, _ = build(4, 6, 5, 2, 8, seed=1)
    router.dropout = 0.5
    table = router.table(sentences_CVd)
    assert torch.equal(router(image_Bd, table).similarity_BC, router(image_Bd, table).similarity_BC)
    router.train()
    assert not torch.equal(router(image_Bd, table).similarity_BC, router(image_Bd, table).similarity_BC)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"tune\.router_heads = 7 does not divide the joint embedding width 128"):
        AttentionRouter(128, 7)


def test_parameters_are_those_of_multihead_attention() -> None:
    state = AttentionRouter(16, 4).state_dict()
    assert set(state) == {f"attention.{name}" for name in nn.MultiheadAttention(16, 4).state_dict()}


def test_identity_and_temperature_start_between_the_mean_sentence_and_the_nearest_one() -> None:
    """With identities z is the attention-weighted mean of the sentences; a small temperature picks one of them."""
    image_Bd, sentences_CVd = unit(3, 8), unit(4, 5, 8)
    cosine_BCV = torch.einsum("bd,cvd->bcv", image_Bd, sentences_CVd)
    mean = AttentionRouter(8, 1, temperature=1e9, init="identity").double()
    expected = torch.einsum("bd,cd->bc", image_Bd, F.normalize(sentences_CVd.mean(dim=1), dim=-1))
    torch.testing.assert_close(mean(image_Bd, mean.table(sentences_CVd)).similarity_BC, expected, rtol=0, atol=1e-7)
    nearest = AttentionRouter(8, 1, temperature=1e-5, init="identity").double()
    routed = nearest(image_Bd, nearest.table(sentences_CVd))
    torch.testing.assert_close(routed.similarity_BC, cosine_BCV.amax(dim=-1), rtol=0, atol=1e-7)
    assert torch.equal(routed.weights_BCV.argmax(dim=-1), cosine_BCV.argmax(dim=-1))


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)


def random_gate(width: int, dimensions: int) -> PairedGate:
    """A gate away from its even start."""
    torch.manual_seed(0)
    gate = PairedGate(width, dimensions).double()
    with torch.no_grad():
        for value in gate.parameters():
            value.normal_(std=0.5)
    return gate


def test_the_gate_starts_even_and_equal_to_the_mean_of_the_sentence_logits() -> None:
    image_Bd, sentences_CVd = unit(6, 16), unit(7, 5, 16)
    gate = PairedGate(16, 5).double()
    routed = gate(image_Bd, gate.table(sentences_CVd), torch.tensor([0, 1, 2, 3, 4, 6]))
    mean_BC = torch.einsum("bd,cvd->bcv", image_Bd, sentences_CVd).mean(dim=-1)
    torch.testing.assert_close(routed.similarity_BC, mean_BC, rtol=0, atol=1e-15)
    assert torch.equal(routed.weights_BCV, torch.full((6, 7, 5), 2 / 5 * 0.5, dtype=torch.float64))
    assert routed.true_Bd is not None
    torch.testing.assert_close(routed.true_Bd, sentences_CVd.mean(dim=1)[[0, 1, 2, 3, 4, 6]], rtol=0, atol=1e-15)


def test_the_gate_is_its_formula() -> None:
    image_Bd, sentences_CVd, gate = unit(4, 8), unit(3, 5, 8), random_gate(8, 5)
    routed = gate(image_Bd, gate.table(sentences_CVd))
    for b, x in enumerate(image_Bd):
        for c, sentences in enumerate(sentences_CVd):
            total = torch.zeros((), dtype=torch.float64)
            for v, sentence in enumerate(sentences):
                cosine = F.cosine_similarity(x + x @ gate.maps_Vdd[v], sentence, dim=0)
                query = x * 8**0.5 @ gate.query_Vdk[v] + gate.query_bias_Vk[v]
                key = routing.GATE_GAIN * sentence @ gate.key_Vdk[v]
                weight = 2 / 5 * (query @ key + gate.bias_V[v]).sigmoid()
                torch.testing.assert_close(routed.weights_BCV[b, c, v], weight, rtol=0, atol=1e-12)
                total = total + weight * cosine
            expected = gate.log_scale.exp() * total
            torch.testing.assert_close(routed.similarity_BC[b, c], expected, rtol=0, atol=1e-12)


def test_gradients_of_the_gate_over_blocks_of_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(routing.BLOCK_ELEMENTS, "cpu", 1)
    gate, label_B = random_gate(3, 2), torch.tensor([2, 0])
    leaves = (unit(2, 3).requires_grad_(), unit(3, 2, 3).requires_grad_(), *gate.parameters())
    names = [name for name, _ in gate.named_parameters()]

    def route(image_Bd: Tensor, sentences_CVd: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        with torch.nn.utils.stateless._reparametrize_module(gate, dict(zip(names, weights, strict=True))):
            routed = gate(image_Bd, gate.table(sentences_CVd), label_B)
            return routed.similarity_BC, routed.weights_BCV, routed.true_Bd

    assert torch.autograd.gradcheck(route, leaves, fast_mode=True)


def build_router(name: str, width: int) -> Router:
    torch.manual_seed(0)
    router = ROUTERS[name](TuneParams(router_heads=2), width, 5).double()
    with torch.no_grad():
        for value in router.parameters():
            value.normal_(std=0.5)
    return router.eval()


@pytest.mark.parametrize("name", ROUTERS)
def test_blocks_and_the_table_of_evaluation_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One table for all batches, without gradients, gives what a training step computes for itself."""
    image_Bd, sentences_CVd, router = unit(5, 8), unit(9, 5, 8), build_router(name, 8)
    whole = router(image_Bd, router.table(sentences_CVd))
    monkeypatch.setitem(routing.BLOCK_ELEMENTS, "cpu", 700)
    with torch.no_grad():
        table = router.table(sentences_CVd)
        assert all(len(tensor) == 9 for tensor in table)
        blocks = router(image_Bd, table)
    torch.testing.assert_close(blocks.similarity_BC, whole.similarity_BC, rtol=0, atol=1e-12)
    torch.testing.assert_close(blocks.weights_BCV, whole.weights_BCV, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ROUTERS)
@torch.no_grad()
def test_dimensions_that_are_not_kept_do_not_matter_and_fixed_weights_are_the_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_Bd, sentences_CVd, router = unit(5, 8), unit(9, 5, 8), build_router(name, 8)
    other_CVd = sentences_CVd.clone()
    other_CVd[:, 2] = sentences_CVd[:, 2].roll(1, 0)
    kept = [[0, 1, 3, 4], [2], [0, 1, 2, 3, 4]]
    only_FCV = torch.zeros(1, 9, 5, dtype=torch.float64)
    only_FCV[..., 2] = 1

    def ablate(sentences_CVd: Tensor) -> Tensor:
        return router.ablate(image_Bd, router.table(sentences_CVd), kept, only_FCV)

    found, other = ablate(sentences_CVd), ablate(other_CVd)
    assert found.shape == (4, 5, 9)
    torch.testing.assert_close(found[0], other[0], rtol=0, atol=0)
    torch.testing.assert_close(other[3], found[3].roll(1, 1), rtol=0, atol=1e-12)
    whole = router(image_Bd, router.table(sentences_CVd)).similarity_BC
    torch.testing.assert_close(found[2], whole, rtol=0, atol=1e-12)
    assert all((whole - found[index]).abs().max() > 1e-3 for index in (0, 1, 3))
    if name == "attention":  # the softmax over one dimension is 1
        torch.testing.assert_close(found[1], found[3], rtol=0, atol=1e-12)
    monkeypatch.setitem(routing.BLOCK_ELEMENTS, "cpu", 700)
    torch.testing.assert_close(ablate(sentences_CVd), found, rtol=0, atol=1e-12)


@torch.no_grad()
def test_without_a_dimension_attention_is_that_of_the_module_on_the_others() -> None:
    router, image_Bd, sentences_CVd, _ = build(3, 4, 5, 2, 4, seed=0)
    kept, even_FCV = [0, 2, 3], torch.full((1, 4, 5), 0.2, dtype=torch.float64)
    found = router.ablate(image_Bd, router.table(sentences_CVd), [kept], even_FCV)
    _, _, part_BCd = repeated(router, image_Bd, sentences_CVd[:, kept])
    torch.testing.assert_close(found[0], (image_Bd[:, None] * part_BCd).sum(-1), rtol=0, atol=1e-12)
    _, _, mean_BCd = repeated(router, image_Bd, sentences_CVd.mean(dim=1, keepdim=True))
    torch.testing.assert_close(found[1], (image_Bd[:, None] * mean_BCd).sum(-1), rtol=0, atol=1e-12)


@torch.no_grad()
def test_without_a_dimension_the_gate_sums_what_is_left() -> None:
    image_Bd, sentences_CVd, gate = unit(4, 8), unit(3, 5, 8), random_gate(8, 5)
    weights_FCV = unit(2, 3, 5)
    found = gate.ablate(image_Bd, gate.table(sentences_CVd), [[0, 4]], weights_FCV)
    weights_BCV = gate(image_Bd, gate.table(sentences_CVd)).weights_BCV
    mapped_VBd = image_Bd + image_Bd @ gate.maps_Vdd
    cosine_BCV = F.cosine_similarity(mapped_VBd[:, :, None], sentences_CVd.transpose(0, 1)[:, None], dim=-1).permute(
        1, 2, 0
    )
    scale = gate.log_scale.exp()
    expected = [(weights_BCV * cosine_BCV)[..., [0, 4]].sum(-1), *(weights_FCV[:, None] * cosine_BCV).sum(-1)]
    torch.testing.assert_close(found, scale * torch.stack(expected), rtol=0, atol=1e-12)


def test_no_operation_of_the_gate_makes_a_tensor_above_images_times_classes_times_its_width() -> None:
    B, C, V, d = 16, 48, 5, 64
    gate = PairedGate(d, V).double()
    image_Bd, sentences_CVd = unit(B, d), unit(C, V, d)
    with Allocations() as made:
        routed = gate(image_Bd, gate.table(sentences_CVd), torch.zeros(B, dtype=torch.int64))
        (routed.similarity_BC.sum() + routed.weights_BCV.square().sum() + routed.true_Bd.sum()).backward()  # type: ignore[union-attr]
    assert made.numbers
    assert max(made.numbers) <= B * C * V * GATE_WIDTH
