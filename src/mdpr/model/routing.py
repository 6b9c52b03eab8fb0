"""The factorised router: for each image and class, attention from the image to the class's V sentences.

The published code repeats queries to (B*C, d) and keys to (B*C*V, d). Keys and values do not depend on the image, and
of the result only its cosine with the image feature is needed, so the same function splits into parts that are
computed once a class (`RouterTable`) and parts with at most B*C*V*H numbers:

    scores[b,c,v,h] = P_cv . W_k,h^T q[b,h] / sqrt(e)                                a = softmax over v
    <x_b, z[b,c]>   = sum_vh a[b,c,v,h] <W_o^T x_b, value[c,v]>_h + <x_b, b_o>
    ||z[b,c]||^2    = a^T G_c a + 2 a^T (U_c b_o) + ||b_o||^2,   U_c = value_c W_o^T a head,   G_c = U_c U_c^T

(b_k adds the same to all V scores of a head, so the softmax takes it away.) z itself exists for the true class of each
image alone: the knowledge-alignment loss needs it. Parameters are those of `nn.MultiheadAttention`, under its names.

Source: Jia et al., Findings of EMNLP 2025, section 3 (the router). The factorisation is this project's.
P as an index is V * H, every (sentence, head) pair of a class, v major; as a tensor it is the sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdpr.errors import ConfigError
from mdpr.model import class_attention, class_gram
from mdpr.model.class_attention import ClassAttention, Settings
from mdpr.model.class_gram import ClassGram

# Numbers in all buffers that a block of classes works in: few enough for a CPU's cache, enough to fill a GPU.
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 3 * 2**22}


@dataclass(frozen=True)
class RouterTable:
    """What the router needs of the classes, constant while its weights are.

    sentences_CVd  P
    gram_CPP       G_c
    bias_CP        U_c b_o
    """

    sentences_CVd: Tensor
    gram_CPP: Tensor
    bias_CP: Tensor


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
        """Norms of the classes' values; differentiable in the router's weights."""
        H, out = self.heads, self.attention.out_proj
        V, d = sentences_CVd.shape[1:]
        with torch.autocast(sentences_CVd.device.type, enabled=False):  # norms are differences: float32
            gram_CPP, bias_CP = ClassGram.apply(
                sentences_CVd,
                *self._value_map(),
                out.weight.T @ out.weight,
                (out.bias @ out.weight).unflatten(0, (H, -1)),
                _classes_a_block(sentences_CVd, class_gram.elements_a_class(V, H, d)),
            )
        return RouterTable(sentences_CVd, gram_CPP, bias_CP)

    def forward(self, image_Bd: Tensor, table: RouterTable, label_B: Tensor | None = None) -> Routed:
        """Route every image over every class, walking over blocks of classes where there are many."""
        attention, H = self.attention, self.heads
        out = attention.out_proj
        with torch.autocast(image_Bd.device.type, enabled=False):  # cosines and norms in float32
            image_Bd = image_Bd.float()
            B, d = image_Bd.shape
            query_weight, key_weight, _ = attention.in_proj_weight.chunk(3)
            query_bias = attention.in_proj_bias.chunk(3)[0]
            value_weight, value_bias = self._value_map()
            query_HBe = self._split(F.linear(image_Bd, query_weight, query_bias)) * (d // H) ** -0.5
            lowered_HBe = self._split(image_Bd @ out.weight)  # W_o^T x, a head at a time
            pulled_d2HB = torch.cat([_pull_back(key_weight, query_HBe), _pull_back(value_weight, lowered_HBe)], dim=1)
            value_bias_HB = (lowered_HBe @ value_bias.unflatten(0, (H, -1))[:, :, None])[..., 0]
            settings = Settings(
                heads=H,
                dropout=self.dropout if self.training else 0.0,
                block=_classes_a_block(image_Bd, class_attention.elements_a_class(table.sentences_CVd.shape[1], H, B)),
            )
            cosine_BC, weights_BCV, true_BVH = ClassAttention.apply(
                table.sentences_CVd,
                pulled_d2HB,
                value_bias_HB,
                image_Bd @ out.bias,
                table.gram_CPP,
                table.bias_CP,
                out.bias.square().sum(),
                label_B,
                settings,
            )
            true_Bd = None if label_B is None else self._combine(true_BVH, table.sentences_CVd[label_B])
        return Routed(cosine_BC, weights_BCV, true_Bd)

    def _combine(self, weights_BVH: Tensor, sentences_BVd: Tensor) -> Tensor:
        """z (B, d) of one class an image."""
        value_BVHe = F.linear(sentences_BVd, *self._value_map()).unflatten(-1, (self.heads, -1))
        combined_Bd = torch.einsum("bvh,bvhe->bhe", weights_BVH, value_BVHe).flatten(1)
        return self.attention.out_proj(combined_Bd)

    def _value_map(self) -> tuple[Tensor, Tensor]:
        """W_v (d, d) and b_v (d,)."""
        return self.attention.in_proj_weight.chunk(3)[2], self.attention.in_proj_bias.chunk(3)[2]

    def _split(self, x_Bd: Tensor) -> Tensor:
        """(B, d) to (H, B, e)."""
        return x_Bd.unflatten(-1, (self.heads, -1)).transpose(0, 1)


def _classes_a_block(like: Tensor, elements_a_class: int) -> int:
    return max(1, BLOCK_ELEMENTS[like.device.type] // elements_a_class)


def _pull_back(weight_dd: Tensor, x_HBe: Tensor) -> Tensor:
    """W_h^T x_h for every head: (d, H * B), so that P_cv . column = <W_h P_cv, x_h>."""
    weight_Hed = weight_dd.unflatten(0, (len(x_HBe), -1))
    return torch.bmm(x_HBe, weight_Hed).flatten(0, 1).T
