"""The factorised router: for each image and class, attention from the image to the class's V sentences.

The published code repeats queries to (B*C, d) and keys to (B*C*V, d). Keys and values do not depend on the image, and
of the result only its cosine with the image feature is needed, so the same function splits into parts that are
computed once a class (`RouterTable`) and parts with at most B*C*V*H numbers:

    scores[b,c,v,h] = q[b,h] . K[c,v,h] / sqrt(e)                                    a = softmax over v
    <x_b, z[b,c]>   = sum_vh a[b,c,v,h] <W_o^T x_b, value[c,v]>_h + <x_b, b_o>
    ||z[b,c]||^2    = a^T G_c a + 2 a^T (U_c b_o) + ||b_o||^2,   U_c = value_c W_o^T a head,   G_c = U_c U_c^T

z itself exists for the true class of each image alone (the knowledge-alignment loss needs it). Parameters are those of
`nn.MultiheadAttention`, under its names.

Source: Jia et al., Findings of EMNLP 2025, section 3 (the router). The factorisation is this project's.
P below is V * H, every (sentence, head) pair of a class, v major.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdpr.errors import ConfigError

NORM_FLOOR = 1e-12  # ||z||^2 is a difference of sums; rounding must not make it negative
BLOCK_ELEMENTS = 2**25  # B * block * V * H, float32: 128 MiB a tensor of the walk over classes


@dataclass(frozen=True)
class RouterTable:
    """What the router needs of the classes, constant while its weights are.

    key_HCVe    keys a head
    value_HCVe  values a head
    gram_CPP    G_c
    bias_CP     U_c b_o
    """

    key_HCVe: Tensor
    value_HCVe: Tensor
    gram_CPP: Tensor
    bias_CP: Tensor

    def block(self, start: int, stop: int) -> RouterTable:
        return RouterTable(
            self.key_HCVe[:, start:stop],
            self.value_HCVe[:, start:stop],
            self.gram_CPP[start:stop],
            self.bias_CP[start:stop],
        )


@dataclass(frozen=True)
class Routed:
    """What routing gives for a batch.

    cosine_BC    <x_b, z[b,c]> / ||z[b,c]||
    weights_BCV  attention averaged over heads: the dimensions each image consulted for each class
    true_Bd      z of each image's true class, not normalised; None without labels
    """

    cosine_BC: Tensor
    weights_BCV: Tensor
    true_Bd: Tensor | None


class Router(nn.Module):
    """One multi-head attention, shared by all classes. d must be divisible by the number of heads."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"tune.router_heads = {heads} does not divide the joint embedding width {width}")
        self.heads = heads
        self.dropout = dropout
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def table(self, sentences_CVd: Tensor) -> RouterTable:
        """Keys, values and norms of the classes; differentiable in the router's weights."""
        attention, H = self.attention, self.heads
        _, key_weight, value_weight = attention.in_proj_weight.chunk(3)
        _, key_bias, value_bias = attention.in_proj_bias.chunk(3)
        key_HCVe = _heads_first(F.linear(sentences_CVd, key_weight, key_bias), H)
        value_HCVe = _heads_first(F.linear(sentences_CVd, value_weight, value_bias), H)
        # U[c, (v,h)] = W_o[:, h] value[c, v, h]
        out_Hed = attention.out_proj.weight.T.unflatten(0, (H, -1))
        lifted_CPd = torch.einsum("hcve,hed->cvhd", value_HCVe, out_Hed).flatten(1, 2)
        gram_CPP = lifted_CPd @ lifted_CPd.transpose(1, 2)
        return RouterTable(key_HCVe, value_HCVe, gram_CPP, lifted_CPd @ attention.out_proj.bias)

    def forward(self, image_Bd: Tensor, table: RouterTable, label_B: Tensor | None = None) -> Routed:
        """Route every image over every class, walking over blocks of classes where there are many."""
        attention, H = self.attention, self.heads
        with torch.autocast(image_Bd.device.type, enabled=False):  # cosines and norms in float32
            image_Bd = image_Bd.float()
            query_weight, query_bias = (
                attention.in_proj_weight.chunk(3)[0],
                attention.in_proj_bias.chunk(3)[0],
            )
            query_HBe = _heads_first(F.linear(image_Bd, query_weight, query_bias), H) * (image_Bd.shape[1] // H) ** -0.5
            lowered_HBe = _heads_first(image_Bd @ attention.out_proj.weight, H)  # W_o^T x, a head at a time
            offset_B = image_Bd @ attention.out_proj.bias

            B, C, V = len(image_Bd), table.key_HCVe.shape[1], table.key_HCVe.shape[2]
            step = max(1, BLOCK_ELEMENTS // (B * V * H))
            cosines, weights, true_weights = [], [], image_Bd.new_zeros(B, V, H)
            for start in range(0, C, step):
                part = table.block(start, min(start + step, C))
                arguments = (
                    query_HBe,
                    lowered_HBe,
                    offset_B,
                    part.key_HCVe,
                    part.value_HCVe,
                    part.gram_CPP,
                    part.bias_CP,
                )
                if step < C and torch.is_grad_enabled():  # keep one block's intermediates, not all
                    cosine, mean, attended = checkpoint(self._route_block, *arguments, use_reentrant=False)
                else:
                    cosine, mean, attended = self._route_block(*arguments)
                cosines.append(cosine)
                weights.append(mean)
                if label_B is not None:
                    here = (label_B >= start) & (label_B < start + step)
                    local = (label_B - start).clamp(0, attended.shape[0] - 1)
                    chosen = attended[local, torch.arange(B, device=local.device)].unflatten(-1, (V, H))
                    true_weights = torch.where(here[:, None, None], chosen, true_weights)
            true_Bd = None if label_B is None else self._combine(true_weights, table, label_B)
            return Routed(torch.cat(cosines, dim=1), torch.cat(weights, dim=1), true_Bd)

    def _route_block(
        self,
        query_HBe: Tensor,
        lowered_HBe: Tensor,
        offset_B: Tensor,
        key_HCVe: Tensor,
        value_HCVe: Tensor,
        gram_CPP: Tensor,
        bias_CP: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines (B, C), weights averaged over heads (B, C, V) and a (C, B, P) of one block of classes."""
        scores_CBVH = _pairs(query_HBe, key_HCVe)
        attended = F.dropout(scores_CBVH.softmax(dim=2), self.dropout, self.training)
        a_CBP = attended.flatten(2)
        dots_CB = (a_CBP * _pairs(lowered_HBe, value_HCVe).flatten(2)).sum(-1) + offset_B
        out_bias = self.attention.out_proj.bias
        square_CB = (torch.bmm(a_CBP, gram_CPP) * a_CBP).sum(-1) + 2 * torch.bmm(a_CBP, bias_CP[:, :, None])[..., 0]
        norm_CB = (square_CB + out_bias.square().sum()).clamp_min(NORM_FLOOR).sqrt()
        return (dots_CB / norm_CB).T, attended.mean(dim=3).transpose(0, 1), a_CBP

    def _combine(self, weights_BVH: Tensor, table: RouterTable, label_B: Tensor) -> Tensor:
        """z (B, d) of one class an image."""
        value_HBVe = table.value_HCVe[:, label_B]
        combined_Bd = torch.einsum("bvh,hbve->bhe", weights_BVH, value_HBVe).flatten(1)
        return self.attention.out_proj(combined_Bd)


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """(..., d) to (H, ..., e)."""
    return x.unflatten(-1, (heads, -1)).movedim(-2, 0)


def _pairs(left_HBe: Tensor, right_HCVe: Tensor) -> Tensor:
    """Dot products a head of every image with every sentence, (C, B, V, H)."""
    H, C, V, e = right_HCVe.shape
    products_HBN = torch.bmm(left_HBe, right_HCVe.reshape(H, C * V, e).transpose(1, 2))
    return products_HBN.view(H, -1, C, V).permute(2, 1, 3, 0)
