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
        kept: list[Tensor] = []
        for start in range(0, C, settings.block):
            stop = min(start + settings.block, C)
            products_CV2HB = (sentences_CVd[start:stop].flatten(0, 1) @ pulled_d2HB).view(-1, V, 2, H * B)
            softmax_CVHB = products_CV2HB[:, :, 0].softmax(dim=1)
            mask = _draw_mask(softmax_CVHB, settings.dropout)
            attention_CVHB = _drop(softmax_CVHB, mask, settings.dropout)
            attention_CPB = attention_CVHB.view(stop - start, V * H, B)
            target_CVHB = products_CV2HB[:, :, 1] + value_bias_HB.flatten()
            dot_CB = (attention_CVHB * target_CVHB).view(-1, V * H, B).sum(dim=1) + offset_B
            square_CB = _square(attention_CPB, gram_CPP[start:stop], bias_CP[start:stop], square_bias)[0]
            torch.sqrt(square_CB.clamp_min_(SQUARE_FLOOR), out=norm_CB[start:stop])
            torch.div(dot_CB, norm_CB[start:stop], out=cosine_CB[start:stop])
            torch.mean(attention_CVHB.view(-1, V, H, B), dim=2, out=mean_CVB[start:stop])
            if label_B is not None:
                image_b = ((label_B >= start) & (label_B < stop)).nonzero()[:, 0]
                true_BVH[image_b] = attention_CPB[label_B[image_b] - start, :, image_b].unflatten(-1, (V, H))
            kept += [softmax_CVHB, *([] if mask is None else [mask])]
        ctx.settings, ctx.masked = settings, settings.dropout > 0
        ctx.save_for_backward(
            sentences_CVd,
            pulled_d2HB,
            value_bias_HB,
            gram_CPP,
            bias_CP,
            square_bias,
            label_B,
            cosine_CB,
            norm_CB,
            *kept,
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
            square_bias,
            label_B,
            cosine_CB,
            norm_CB,
            *kept,
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
        for index, start in enumerate(range(0, C, settings.block)):
            stop = min(start + settings.block, C)
            sentences_Nd = sentences_CVd[start:stop].flatten(0, 1)
            softmax_CVHB, mask = (kept[2 * index], kept[2 * index + 1]) if ctx.masked else (kept[index], None)
            attention_CVHB = _drop(softmax_CVHB, mask, settings.dropout)
            attention_CPB = attention_CVHB.view(stop - start, V * H, B)
            target_CVHB = (sentences_Nd @ pulled_d2HB[:, H * B :]).view(-1, V, H * B) + value_bias_HB.flatten()
            dot_gradient_C1B = dot_gradient_CB[start:stop, None]
            square_gradient_C1B = square_gradient_CB[start:stop, None]

            lifted_CPB = _square(attention_CPB, gram_CPP[start:stop], bias_CP[start:stop], square_bias)[1]
            gradient_CPB = lifted_CPB.mul_(2 * square_gradient_C1B)
            gradient_CPB.addcmul_(target_CVHB.view_as(gradient_CPB), dot_gradient_C1B)
            gradient_CPB.view(-1, V, H, B).add_(mean_gradient_CVB[start:stop, :, None])
            if label_B is not None:
                image_b = ((label_B >= start) & (label_B < stop)).nonzero()[:, 0]
                gradient_CPB[label_B[image_b] - start, :, image_b] += true_gradient_BVH[image_b].flatten(1)

            weighted_CPB = attention_CPB * square_gradient_C1B
            torch.bmm(weighted_CPB, attention_CPB.transpose(1, 2), out=gram_gradient_CPP[start:stop])
            torch.sum(weighted_CPB, dim=2, out=bias_gradient_CP[start:stop]).mul_(2)

            products_CV2HB = sentences_CVd.new_empty(stop - start, V, 2, H * B)
            gradient_CVHB = _drop(gradient_CPB.view(-1, V, H * B), mask, settings.dropout)
            inner_C1HB = (gradient_CVHB * softmax_CVHB).sum(dim=1, keepdim=True)
            torch.mul(gradient_CVHB - inner_C1HB, softmax_CVHB, out=products_CV2HB[:, :, 0])
            target_gradient_CVHB = products_CV2HB[:, :, 1].unflatten(-1, (H, B))
            torch.mul(attention_CVHB.unflatten(-1, (H, B)), dot_gradient_C1B[:, None], out=target_gradient_CVHB)
            products_N2HB = products_CV2HB.view(-1, 2 * H * B)
            pulled_gradient_d2HB.addmm_(sentences_Nd.T, products_N2HB)
            target_gradient_HB += products_N2HB[:, H * B :].sum(dim=0)
            if sentences_gradient_CVd is not None:
                torch.mm(products_N2HB, pulled_d2HB.T, out=sentences_gradient_CVd[start:stop].view(-1, d))
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


def _square(attention_CPB: Tensor, gram_CPP: Tensor, bias_CP: Tensor, square_bias: Tensor) -> tuple[Tensor, Tensor]:
    """||z||^2, (C, B), and half its gradient in the attention, G a + bias, (C, P, B)."""
    lifted_CPB = torch.baddbmm(bias_CP[:, :, None], gram_CPP, attention_CPB)
    # a G a + 2 a bias = a (G a + bias) + a bias
    square_CB = (attention_CPB * lifted_CPB).sum(dim=1) + torch.bmm(bias_CP[:, None], attention_CPB)[:, 0]
    return square_CB + square_bias, lifted_CPB


def _draw_mask(like: Tensor, dropout: float) -> Tensor | None:
    """Which weights stay, one byte each; None without dropout."""
    return torch.empty_like(like, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None


def _drop(values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return values if mask is None else values * mask / (1 - dropout)
