"""Every image over every class, a block of classes at a time, with nothing kept but the attention itself.

For a block, in the layout (C, V, H, B), where every sum and softmax runs over memory in order:

    a         = softmax over v of P_cv . query                               (dropout on it while training)
    dot_CB    = sum_p a_p (P_cv . target + value_bias) + offset              <x, z>
    square_CB = sum_p a_p (G a)_p + 2 sum_p a_p bias_p + |b_o|^2             ||z||^2
    cosine    = dot / sqrt(square)

`query` and `target` (d, H * B) are image features pulled back through W_k and through W_o, W_v, so that the sentences P
meet them in one matrix product and neither keys nor values of the classes are needed here.
P below (as an index) is V * H, every (sentence, head) pair of a class, v major.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SQUARE_FLOOR = 1e-12  # ||z||^2 is a difference of sums; rounding must not make it negative


@dataclass(frozen=True)
class Settings:
    """What does not take gradients: heads, dropout on the weights (0 in evaluation), classes a block."""

    heads: int
    dropout: float
    block: int


class ClassAttention(torch.autograd.Function):
    """Cosines (B, C), weights averaged over heads (B, C, V), and the true class's attention (B, V, H).

    Arguments: sentences (C, V, d); pulled_d2HB, query and target side by side; value_bias_HB, <b_v, W_o^T x> a head;
    offset_B, <x, b_o>; gram (C, P, P); bias (C, P), U b_o; square_bias, |b_o|^2; labels (B,) or None; settings.

    Every block works in the same few buffers: new ones for each would cost page faults, and memory that the allocator
    gives back late.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sentences_CVd: Tensor,
        pulled_d2HB: Tensor,
        value_bias_HB: Tensor,
        offset_B: Tensor,
        gram_CPP: Tensor,
        bias_CP: Tensor,
        square_bias: Tensor,
        label_B: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        C, V = sentences_CVd.shape[:2]
        H, B = value_bias_HB.shape
        cosine_CB = offset_B.new_empty(C, B)
        norm_CB = offset_B.new_empty(C, B)
        mean_CVB = offset_B.new_empty(C, V, B)
        true_BVH = offset_B.new_zeros(B, V, H)
        softmax_CVHB = offset_B.new_empty(C, V, H * B)
        mask_CVHB = _draw_mask(softmax_CVHB, settings.dropout)
        buffers = offset_B.new_empty(3, min(settings.block, C), V, H * B)
        for start in range(0, C, settings.block):
            here = slice(start, min(start + settings.block, C))
            sentences_Nd = sentences_CVd[here].flatten(0, 1)
            work_CVHB, target_CVHB, attention_CVHB = buffers[:, : here.stop - start]
            torch.mm(sentences_Nd, pulled_d2HB[:, : H * B], out=work_CVHB.view(-1, H * B))
            torch.softmax(work_CVHB, dim=1, out=softmax_CVHB[here])
            attention_CVHB = _drop(softmax_CVHB[here], mask_CVHB, here, settings.dropout, attention_CVHB)
            attention_CPB = attention_CVHB.view(-1, V * H, B)
            _project(sentences_Nd, pulled_d2HB, value_bias_HB, target_CVHB)
            dot_CB = torch.mul(attention_CVHB, target_CVHB, out=work_CVHB).view(-1, V * H, B).sum(dim=1) + offset_B
            lifted_CPB = _lift(attention_CPB, gram_CPP[here], bias_CP[here], work_CVHB)
            # a G a + 2 a bias = a (G a + bias) + a bias
            square_CB = lifted_CPB.mul_(attention_CPB).sum(dim=1) + square_bias
            square_CB += torch.bmm(bias_CP[here, None], attention_CPB)[:, 0]
            torch.sqrt(square_CB.clamp_min_(SQUARE_FLOOR), out=norm_CB[here])
            torch.div(dot_CB, norm_CB[here], out=cosine_CB[here])
            torch.mean(attention_CVHB.view(-1, V, H, B), dim=2, out=mean_CVB[here])
            if label_B is not None:
                image_b = _images_of(label_B, here)
                true_BVH[image_b] = attention_CPB[label_B[image_b] - start, :, image_b].unflatten(-1, (V, H))
        ctx.settings = settings
        ctx.save_for_backward(
            sentences_CVd,
            pulled_d2HB,
            value_bias_HB,
            gram_CPP,
            bias_CP,
            label_B,
            cosine_CB,
            norm_CB,
            softmax_CVHB,
            mask_CVHB,
        )
        return cosine_CB.T, mean_CVB.permute(2, 0, 1), true_BVH

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosine_gradient_BC, mean_gradient_BCV, true_gradient_BVH = gradients
        (
            sentences_CVd,
            pulled_d2HB,
            value_bias_HB,
            gram_CPP,
            bias_CP,
            label_B,
            cosine_CB,
            norm_CB,
            softmax_CVHB,
            mask_CVHB,
        ) = ctx.saved_tensors
        settings = ctx.settings
        C, V, d = sentences_CVd.shape
        H, B = value_bias_HB.shape
        mean_gradient_CVB = mean_gradient_BCV.permute(1, 2, 0) / H
        # cosine = dot / norm, norm = sqrt(square); a clamped square has no gradient.
        dot_gradient_CB = cosine_gradient_BC.T / norm_CB
        square_gradient_CB = -0.5 * dot_gradient_CB * cosine_CB / norm_CB
        square_gradient_CB.masked_fill_(norm_CB <= SQUARE_FLOOR**0.5, 0)

        wants_sentences = ctx.needs_input_grad[0]
        sentences_gradient_CVd = torch.empty_like(sentences_CVd) if wants_sentences else None
        pulled_gradient_d2HB = torch.zeros_like(pulled_d2HB)
        target_gradient_HB = value_bias_HB.new_zeros(H * B)
        gram_gradient_CPP = torch.empty_like(gram_CPP)
        bias_gradient_CP = torch.empty_like(bias_CP)
        block = min(settings.block, C)
        buffers = norm_CB.new_empty(4, block, V, H * B)
        products_buffer = norm_CB.new_empty(block, V, 2, H * B)
        for start in range(0, C, settings.block):
            here = slice(start, min(start + settings.block, C))
            sentences_Nd = sentences_CVd[here].flatten(0, 1)
            work_CVHB, target_CVHB, gradient_CVHB, attention_CVHB = buffers[:, : here.stop - start]
            attention_CVHB = _drop(softmax_CVHB[here], mask_CVHB, here, settings.dropout, attention_CVHB)
            attention_CPB = attention_CVHB.view(-1, V * H, B)
            dot_gradient_C1B = dot_gradient_CB[here, None]
            square_gradient_C1B = square_gradient_CB[here, None]

            _project(sentences_Nd, pulled_d2HB, value_bias_HB, target_CVHB)
            gradient_CPB = _lift(attention_CPB, gram_CPP[here], bias_CP[here], gradient_CVHB)
            gradient_CPB.mul_(2 * square_gradient_C1B)
            gradient_CPB.addcmul_(target_CVHB.view_as(gradient_CPB), dot_gradient_C1B)
            gradient_CPB.view(-1, V, H, B).add_(mean_gradient_CVB[here, :, None])
            if label_B is not None:
                image_b = _images_of(label_B, here)
                gradient_CPB[label_B[image_b] - start, :, image_b] += true_gradient_BVH[image_b].flatten(1)

            weighted_CPB = torch.mul(attention_CPB, square_gradient_C1B, out=work_CVHB.view_as(attention_CPB))
            torch.bmm(weighted_CPB, attention_CPB.transpose(1, 2), out=gram_gradient_CPP[here])
            torch.sum(weighted_CPB, dim=2, out=bias_gradient_CP[here]).mul_(2)

            products_CV2HB = products_buffer[: here.stop - start]
            gradient_CVHB = _drop(gradient_CVHB, mask_CVHB, here, settings.dropout, gradient_CVHB)
            inner_C1HB = torch.mul(gradient_CVHB, softmax_CVHB[here], out=work_CVHB).sum(dim=1, keepdim=True)
            torch.mul(gradient_CVHB.sub_(inner_C1HB), softmax_CVHB[here], out=products_CV2HB[:, :, 0])
            target_gradient_CVHB = products_CV2HB[:, :, 1].unflatten(-1, (H, B))
            torch.mul(attention_CVHB.view(-1, V, H, B), dot_gradient_C1B[:, None], out=target_gradient_CVHB)
            products_N2HB = products_CV2HB.view(-1, 2 * H * B)
            pulled_gradient_d2HB.addmm_(sentences_Nd.T, products_N2HB)
            target_gradient_HB += products_N2HB[:, H * B :].sum(dim=0)
            if sentences_gradient_CVd is not None:
                torch.mm(products_N2HB, pulled_d2HB.T, out=sentences_gradient_CVd[here].view(-1, d))
        return (
            sentences_gradient_CVd,
            pulled_gradient_d2HB,
            target_gradient_HB.view(H, B),
            dot_gradient_CB.sum(dim=0),
            gram_gradient_CPP,
            bias_gradient_CP,
            square_gradient_CB.sum(),
            None,
            None,
        )


def elements_a_class(V: int, H: int, B: int) -> int:
    """Numbers that the buffers of the backward pass, the larger ones, hold for a class."""
    return 6 * V * H * B


def _project(sentences_Nd: Tensor, pulled_d2HB: Tensor, value_bias_HB: Tensor, target_CVHB: Tensor) -> None:
    """Fill `target_CVHB` with <W_o^T x, value> of every head: what <x, z> sums over, weighted by the attention."""
    HB = value_bias_HB.numel()
    torch.addmm(value_bias_HB.flatten(), sentences_Nd, pulled_d2HB[:, HB:], out=target_CVHB.view(-1, HB))


def _lift(attention_CPB: Tensor, gram_CPP: Tensor, bias_CP: Tensor, buffer_CVHB: Tensor) -> Tensor:
    """G a + bias, (C, P, B), half the gradient of ||z||^2 in the attention; written to the buffer."""
    return torch.baddbmm(bias_CP[:, :, None], gram_CPP, attention_CPB, out=buffer_CVHB.view_as(attention_CPB))


def _images_of(label_B: Tensor, classes: slice) -> Tensor:
    """Numbers of the images whose class is in the block."""
    return ((label_B >= classes.start) & (label_B < classes.stop)).nonzero()[:, 0]


def _draw_mask(like: Tensor, dropout: float) -> Tensor | None:
    """Which weights stay, one byte each; None without dropout."""
    return torch.empty_like(like, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None


def _drop(values: Tensor, mask_CVHB: Tensor | None, here: slice, dropout: float, buffer: Tensor) -> Tensor:
    """Dropout with the mask of the classes `here`, written to the buffer; `values` itself without a mask."""
    return values if mask_CVHB is None else torch.mul(values, mask_CVHB[here], out=buffer).div_(1 - dropout)
