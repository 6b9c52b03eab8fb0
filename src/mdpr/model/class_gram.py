"""What the norm ||z|| needs of the classes, walked over in blocks: a Gram matrix and a vector each.

With value[c,v] = W_v P_cv + b_v in H heads of width e, and S = W_o^T W_o in blocks S_hk (e, e):

    G_c[(v,h),(u,k)] = value[c,v,h] . S_hk value[c,u,k]          bias_c[(v,h)] = value[c,v,h] . (W_o^T b_o)_h

G_c is U_c U_c^T for U[c,(v,h)] = W_o[:,h] value[c,v,h], at an inner width of e instead of d. Neither U, of shape
(C, V*H, d), nor the values of all classes exist at any time: a block's are made in buffers that the next one uses too,
and made anew in the backward pass. Autograd would keep them all.
P as an index is V * H, every (sentence, head) pair of a class, v major; N = V * classes of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ClassGram(torch.autograd.Function):
    """Gram (C, P, P) and bias (C, P) of every class.

    Arguments: sentences (C, V, d); W_v (d, d); b_v (d,); metric S (d, d), symmetric; lowered bias W_o^T b_o (H, e);
    classes a block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sentences_CVd: Tensor,
        value_weight_dd: Tensor,
        value_bias_d: Tensor,
        metric_dd: Tensor,
        lowered_He: Tensor,
        block: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(sentences_CVd, value_weight_dd, value_bias_d, metric_dd, lowered_He)
        ctx.block = block
        C, V, d = sentences_CVd.shape
        H, e = lowered_He.shape
        gram_CPP = sentences_CVd.new_empty(C, V * H, V * H)
        bias_CP = sentences_CVd.new_empty(C, V * H)
        value_buffer, measured_buffer = _buffers(sentences_CVd, min(block, C) * V, d, H * d)
        for start in range(0, C, block):
            sentences_Nd = sentences_CVd[start : start + block].flatten(0, 1)
            N = len(sentences_Nd)
            value_NHe = _values(sentences_Nd, value_weight_dd, value_bias_d, value_buffer[:N]).view(N, H, e)
            measured_NHd = measured_buffer[:N].view(N, H, d)  # row (n, h) is S[:, h] value[n, h]
            for h in range(H):
                torch.mm(value_NHe[:, h], metric_dd[h * e : (h + 1) * e], out=measured_NHd[:, h])
            value_cVHe = value_NHe.unflatten(0, (-1, V))
            measured_cPHe = measured_NHd.view(-1, V * H, H, e)
            gram_cVHP = gram_CPP[start : start + block].view(-1, V, H, V * H)
            for h in range(H):
                gram_cVHP[:, :, h] = value_cVHe[:, :, h] @ measured_cPHe[:, :, h].transpose(1, 2)
            bias_CP[start : start + block] = (value_cVHe * lowered_He).sum(dim=-1).flatten(1)
        return gram_CPP, bias_CP

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gram_gradient_CPP, bias_gradient_CP = gradients
        sentences_CVd, value_weight_dd, value_bias_d, metric_dd, lowered_He = ctx.saved_tensors
        block = ctx.block
        C, V, d = sentences_CVd.shape
        H, e = lowered_He.shape
        sentences_gradient_CVd = torch.empty_like(sentences_CVd) if ctx.needs_input_grad[0] else None
        weight_gradient_dd, bias_gradient_d = torch.zeros_like(value_weight_dd), torch.zeros_like(value_bias_d)
        metric_gradient_dd, lowered_gradient_He = torch.zeros_like(metric_dd), torch.zeros_like(lowered_He)
        buffers = _buffers(sentences_CVd, min(block, C) * V, d, d, V * H * H, H * d)
        for start in range(0, C, block):
            sentences_Nd = sentences_CVd[start : start + block].flatten(0, 1)
            N = len(sentences_Nd)
            value_buffer, gradient_buffer, both_buffer, pulled_buffer = (buffer[:N] for buffer in buffers)
            value_NHe = _values(sentences_Nd, value_weight_dd, value_bias_d, value_buffer).view(N, H, e)
            value_cVHe = value_NHe.unflatten(0, (-1, V))
            # G is symmetric: only the symmetric part of its gradient counts.
            part_cPVH = gram_gradient_CPP[start : start + block].unflatten(-1, (V, H))
            mirrored_cPVH = gram_gradient_CPP[start : start + block].transpose(1, 2).unflatten(-1, (V, H))
            both_cHPV = both_buffer.view(-1, H, V * H, V)
            torch.add(part_cPVH.permute(0, 3, 1, 2), mirrored_cPVH.permute(0, 3, 1, 2), out=both_cHPV)
            pulled_cPHe = pulled_buffer.view(-1, V * H, H, e)
            for h in range(H):
                pulled_cPHe[:, :, h] = both_cHPV[:, h] @ value_cVHe[:, :, h]
            pulled_NHd = pulled_cPHe.view(-1, H, d)
            bias_part_NH = bias_gradient_CP[start : start + block].reshape(-1, H)
            value_gradient_NHe = gradient_buffer.view(N, H, e)
            torch.mul(bias_part_NH[:, :, None], lowered_He, out=value_gradient_NHe)
            lowered_gradient_He += (bias_part_NH[:, :, None] * value_NHe).sum(dim=0)
            for h in range(H):
                here = slice(h * e, (h + 1) * e)
                value_gradient_NHe[:, h].addmm_(pulled_NHd[:, h], metric_dd[:, here])
                metric_gradient_dd[here].addmm_(value_NHe[:, h].T, pulled_NHd[:, h], alpha=0.5)
            value_gradient_Nd = gradient_buffer
            weight_gradient_dd.addmm_(value_gradient_Nd.T, sentences_Nd)
            bias_gradient_d += value_gradient_Nd.sum(dim=0)
            if sentences_gradient_CVd is not None:
                part = sentences_gradient_CVd[start : start + block].view(-1, d)
                torch.mm(value_gradient_Nd, value_weight_dd, out=part)
        return (
            sentences_gradient_CVd,
            weight_gradient_dd,
            bias_gradient_d,
            metric_gradient_dd,
            lowered_gradient_He,
            None,
        )


def elements_a_class(V: int, H: int, d: int) -> int:
    """Numbers that the buffers of the backward pass, the larger ones, hold for a class."""
    return V * (2 * d + V * H * H + H * d)


def _buffers(like: Tensor, rows: int, *widths: int) -> list[Tensor]:
    return [like.new_empty(rows, width) for width in widths]


def _values(sentences_Nd: Tensor, weight_dd: Tensor, bias_d: Tensor, buffer_Nd: Tensor) -> Tensor:
    """W_v P + b_v, written to `buffer_Nd`."""
    return torch.addmm(bias_d, sentences_Nd, weight_dd.T, out=buffer_Nd)
