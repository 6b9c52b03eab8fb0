"""The routing branch, by name (`tune.router`): how much each of a class's V sentences counts for an image.

    attention    one multi-head attention from the image to the class's sentences; the published router
    paired_gate  one gate per (image, sentence) over CLIP's own sentence logits; of this project

A router makes a `RouterTable` of the classes once (per step while training, once in evaluation) and then routes batches
of images over blocks of classes. Every block is plain autograd under `torch.utils.checkpoint`: its intermediate tensors
are freed after the forward pass and computed again in the backward pass, so memory does not grow with V * H times the
number of classes.

Shapes: B images, C classes, V dimensions, d joint embedding width, H heads, e = d / H, k width of the gate's queries.
P as an index is V * H: every (sentence, head) pair of a class, v major. Lower-case c is the classes of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdpr.errors import ConfigError
from mdpr.params import TuneParams

# Numbers in the tensors of one block of classes: few enough for a CPU's cache, enough to fill a GPU.
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 3 * 2**22}
SQUARE_FLOOR = 1e-12  # ||z||^2 is a difference of sums; rounding must not make it negative
GATE_WIDTH = 32  # k
GATE_GAIN = 3.0  # on the gate's keys: how fast a gate leaves its even start

RouterTable = tuple[Tensor, ...]  # constant while the router's weights are; the first axis of each tensor is C


@dataclass(frozen=True)
class Routed:
    """The result of routing for a batch.

    similarity_BC  times the logit scale: the logits of the routing branch
    weights_BCV    how much each sentence counted
    true_Bd        z, the routed text of each image's true class, not normalised; None without labels
    """

    similarity_BC: Tensor
    weights_BCV: Tensor
    true_Bd: Tensor | None


class Router(nn.Module):
    """The interface of all routers. Everything is computed in float32, whatever the autocast."""

    def table(self, sentences_CVd: Tensor) -> RouterTable:
        """The classes' constants, differentiable in the router's weights."""
        raise NotImplementedError

    def forward(self, image_Bd: Tensor, table: RouterTable, label_B: Tensor | None = None) -> Routed:
        """Route every image over every class."""
        raise NotImplementedError

    def ablate(
        self, image_Bd: Tensor, table: RouterTable, kept: Sequence[Sequence[int]], weights_FCV: Tensor
    ) -> Tensor:
        """similarity_BC of S + F ablations, (S + F, B, C), from one computation of what they share.

        First S in which only the dimensions of one of `kept` count, then F with fixed weights in place of the ones
        that depend on the image. Without gradients; `table` is that of evaluation.
        """
        raise NotImplementedError


class AttentionRouter(Router):
    """One multi-head attention, shared by all classes: weights_BCV is the softmax over V, averaged over heads.

    The published code repeats queries to (B*C, d) and keys to (B*C*V, d). Keys and values do not depend on the image,
    and only the cosine of the result with the image feature is needed, so the same function splits into parts with at
    most B*C*V*H numbers:

        scores[b,c,v,h] = P_cv . W_k,h^T q[b,h] / (sqrt(e) temperature)                  a = softmax over v
        <x_b, z[b,c]>   = sum_vh a[b,c,v,h] <W_o^T x_b, value[c,v]>_h + <x_b, b_o>
        ||z[b,c]||^2    = a^T G_c a + 2 a^T U_c b_o + ||b_o||^2      U_c[(v,h)] = W_o,h value[c,v]_h, G_c = U_c U_c^T

    (b_k adds the same number to all V scores of a head, which the softmax cancels.) z itself is computed only for the
    true class of each image. The parameters are those of `nn.MultiheadAttention`, under its names.

    Arguments: d; H, which must divide d; dropout on the weights while training; the temperature, 1 in the published
    code (unit-length queries and keys give scores near 0, so its weights stay almost even); init, random as published,
    or identity: at the start z is the attention-weighted mean of the sentences themselves.
    Source: Jia et al., Findings of EMNLP 2025, section 3. The factorisation is this project's.
    """

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, temperature: float = 1.0, init: str = "random"
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"tune.router_heads = {heads} does not divide the joint embedding width {width}")
        self.heads, self.dropout, self.temperature = heads, dropout, temperature
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        if init == "identity":
            with torch.no_grad():
                self.attention.in_proj_weight.copy_(torch.eye(width).repeat(3, 1))
                self.attention.out_proj.weight.copy_(torch.eye(width))

    def table(self, sentences_CVd: Tensor) -> RouterTable:
        """Sentences P (C, V, d), Gram matrices G (C, P, P) and bias (C, P)."""
        if torch.is_grad_enabled():  # in a training step each block makes its own and frees it again
            return (sentences_CVd,)
        blocks = _over_classes(self._gram, (sentences_CVd,), self._gram_elements(sentences_CVd))
        gram_CPP, bias_CP = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return sentences_CVd, gram_CPP, bias_CP

    def forward(self, image_Bd: Tensor, table: RouterTable, label_B: Tensor | None = None) -> Routed:
        with torch.autocast(image_Bd.device.type, enabled=False):
            image_Bd, sentences_CVd = image_Bd.float(), table[0]
            attend = partial(self._attend, *self._pull(image_Bd), label_B)
            index_C = torch.arange(len(sentences_CVd), device=image_Bd.device)
            elements = self._elements(sentences_CVd, image_Bd)
            if len(table) == 1:
                elements = max(elements, self._gram_elements(sentences_CVd))
            blocks = list(_over_classes(attend, (index_C, *table), elements, random=self.training and self.dropout > 0))
            cosine_CB, weights_CVB = (torch.cat([block[i] for block in blocks]) for i in (0, 1))
            true_Bd = None
            if label_B is not None:
                true_BVH = torch.stack([block[2] for block in blocks]).sum(dim=0)
                value_BVHe = self._values(sentences_CVd[label_B])
                true_Bd = self.attention.out_proj(torch.einsum("bvh,bvhe->bhe", true_BVH, value_BVHe).flatten(1))
        return Routed(cosine_CB.T.contiguous(), weights_CVB.permute(2, 0, 1), true_Bd)

    def ablate(
        self, image_Bd: Tensor, table: RouterTable, kept: Sequence[Sequence[int]], weights_FCV: Tensor
    ) -> Tensor:
        """Attention is linear in the values: fixed weights need no more than what the scores need anyway."""
        with torch.autocast(image_Bd.device.type, enabled=False):
            image_Bd = image_Bd.float()
            body = partial(self._ablate, *self._pull(image_Bd), kept)
            elements = self._elements(table[0], image_Bd)
            blocks = _over_classes(body, (*table, weights_FCV.transpose(0, 1)), elements)
            return torch.cat([block[0].permute(1, 2, 0) for block in blocks], dim=2)

    def _pull(self, image_Bd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images' side of a batch: queries and targets pulled back through W_k and W_v (d, 2HB), so that images
        meet the sentences without keys or values of the classes; <value bias, W_o^T x> (H, B); <x, b_o> (B,)."""
        attention, out, (H, e) = self.attention, self.attention.out_proj, self._split
        query_weight, key_weight, value_weight = attention.in_proj_weight.chunk(3)
        query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
        query_BHe = F.linear(image_Bd, query_weight, query_bias).unflatten(-1, (H, e))
        query_BHe = query_BHe * (e**-0.5 / self.temperature)
        lowered_BHe = (image_Bd @ out.weight).unflatten(-1, (H, e))  # W_o^T x per head
        pulled_dHB, target_dHB = (
            torch.einsum("bhe,hed->dhb", x_BHe, weight.unflatten(0, (H, e))).flatten(1)
            for x_BHe, weight in ((query_BHe, key_weight), (lowered_BHe, value_weight))
        )
        value_bias_HB = torch.einsum("bhe,he->hb", lowered_BHe, value_bias.unflatten(0, (H, e)))
        return torch.cat([pulled_dHB, target_dHB], dim=1), value_bias_HB, image_Bd @ out.bias

    def _attend(
        self,
        pulled_d2HB: Tensor,
        value_bias_HB: Tensor,
        offset_B: Tensor,
        label_B: Tensor | None,
        index_c: Tensor,
        sentences_cVd: Tensor,
        *norms: Tensor,
    ) -> tuple[Tensor, ...]:
        """A block's cosines (c, B), weights averaged over heads (c, V, B), and with labels the attention (B, V, H) of
        the images whose true class is in the block, 0 for the others."""
        H, B = value_bias_HB.shape
        gram_cPP, bias_cP = norms or self._gram(sentences_cVd)
        scores_cVHB, target_cVHB = (sentences_cVd @ pulled_d2HB).unflatten(-1, (2, H, B)).unbind(2)
        attention_cVHB = F.dropout(scores_cVHB.softmax(dim=1), self.dropout, self.training)
        cosine_cB = self._cosine(attention_cVHB, target_cVHB + value_bias_HB, gram_cPP, bias_cP, offset_B)
        if label_B is None:
            return cosine_cB, attention_cVHB.mean(dim=2)
        place_B = label_B - index_c[0]
        inside_B = (place_B >= 0) & (place_B < len(index_c))
        image_B = torch.arange(B, device=label_B.device)
        true_BVH = attention_cVHB[place_B.clamp(0, len(index_c) - 1), :, :, image_B]
        return cosine_cB, attention_cVHB.mean(dim=2), true_BVH * inside_B[:, None, None]

    def _ablate(
        self,
        pulled_d2HB: Tensor,
        value_bias_HB: Tensor,
        offset_B: Tensor,
        kept: Sequence[Sequence[int]],
        sentences_cVd: Tensor,
        gram_cPP: Tensor,
        bias_cP: Tensor,
        weights_cFV: Tensor,
    ) -> tuple[Tensor]:
        """A block's cosines (c, S + F, B)."""
        H, B = value_bias_HB.shape
        scores_cVHB, target_cVHB = (sentences_cVd @ pulled_d2HB).unflatten(-1, (2, H, B)).unbind(2)
        target_cVHB = target_cVHB + value_bias_HB
        found = []
        for dimensions in kept:
            place_P = [v * H + h for v in dimensions for h in range(H)]
            part_cPP = gram_cPP[:, place_P][:, :, place_P]
            attention_ckHB = scores_cVHB[:, dimensions].softmax(dim=1)
            found.append(
                self._cosine(attention_ckHB, target_cVHB[:, dimensions], part_cPP, bias_cP[:, place_P], offset_B)
            )
        for weights_cV in weights_cFV.unbind(1):
            attention_cVH1 = weights_cV[:, :, None, None].expand(-1, -1, H, 1)
            found.append(self._cosine(attention_cVH1, target_cVHB, gram_cPP, bias_cP, offset_B))
        return (torch.stack(found, dim=1),)

    def _cosine(
        self, attention_cVHB: Tensor, target_cVHB: Tensor, gram_cPP: Tensor, bias_cP: Tensor, offset_B: Tensor
    ) -> Tensor:
        """cos(x_b, z[b,c]) of a block, (c, B)."""
        dot_cB = (attention_cVHB * target_cVHB).sum(dim=(1, 2)) + offset_B
        attention_cPB = attention_cVHB.flatten(1, 2)
        lifted_cPB = gram_cPP @ attention_cPB + 2 * bias_cP[:, :, None]
        square_cB = (lifted_cPB * attention_cPB).sum(dim=1) + self.attention.out_proj.bias.square().sum()
        return dot_cB / square_cB.clamp_min(SQUARE_FLOOR).sqrt()

    def _gram(self, sentences_cVd: Tensor) -> tuple[Tensor, Tensor]:
        """A block's Gram matrices (c, P, P) and bias (c, P), in float32: norms are differences."""
        out = self.attention.out_proj
        with torch.autocast(sentences_cVd.device.type, enabled=False):
            out_dHe = out.weight.unflatten(1, self._split)
            projected_cPd = torch.einsum("cvhe,dhe->cvhd", self._values(sentences_cVd), out_dHe).flatten(1, 2)
            return projected_cPd @ projected_cPd.transpose(1, 2), projected_cPd @ out.bias

    def _values(self, sentences_CVd: Tensor) -> Tensor:
        """The sentences through W_v, (C, V, H, e)."""
        _, _, weight = self.attention.in_proj_weight.chunk(3)
        _, _, bias = self.attention.in_proj_bias.chunk(3)
        return F.linear(sentences_CVd, weight, bias).unflatten(-1, self._split)

    def _gram_elements(self, sentences_CVd: Tensor) -> int:
        """Numbers that `_gram` holds per class."""
        V, d = sentences_CVd.shape[1:]
        return V * d * (1 + 2 * self.heads)

    def _elements(self, sentences_CVd: Tensor, image_Bd: Tensor) -> int:
        """Numbers that attending of a batch holds per class."""
        return 6 * sentences_CVd.shape[1] * self.heads * len(image_Bd)

    @property
    def _split(self) -> tuple[int, int]:
        return self.heads, self.attention.embed_dim // self.heads


class PairedGate(Router):
    """A gate for each (image, sentence) over CLIP's own sentence logits; weights_BCV are the gates.

        cosine[b,c,v] = <x_b + D_v x_b, P_cv>, both sides unit length         D_v (d, d) starts at 0
        w[b,c,v]      = 2 sigmoid(<A_v x_b, B_v P_cv> + bias_v) / V            A_v (d, k) starts at 0, B_v is random
        similarity    = exp(a) sum_v w[b,c,v] cosine[b,c,v]                    a starts at 0

    At the start every gate is 1 / V, and the logits are the mean of CLIP's own over the V sentences. A gate lies
    between 0 and 2 / V; unlike a softmax, all sentences of a class can be switched off together. z is sum_v w P.
    """

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        self.maps_Vdd = nn.Parameter(torch.zeros(dimensions, width, width))
        self.query_Vdk = nn.Parameter(torch.zeros(dimensions, width, GATE_WIDTH))
        self.query_bias_Vk = nn.Parameter(torch.zeros(dimensions, GATE_WIDTH))
        self.key_Vdk = nn.Parameter(torch.randn(dimensions, width, GATE_WIDTH) / math.sqrt(width))
        self.bias_V = nn.Parameter(torch.zeros(dimensions))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def table(self, sentences_CVd: Tensor) -> RouterTable:
        """Unit-length sentences (C, V, d) and keys of the gate (C, V, k)."""
        with torch.autocast(sentences_CVd.device.type, enabled=False):
            unit_CVd = F.normalize(sentences_CVd, dim=-1)
            return unit_CVd, GATE_GAIN * torch.einsum("cvd,vdk->cvk", unit_CVd, self.key_Vdk)

    def forward(self, image_Bd: Tensor, table: RouterTable, label_B: Tensor | None = None) -> Routed:
        with torch.autocast(image_Bd.device.type, enabled=False):
            image_Bd = image_Bd.float()
            gate = partial(self._gate, *self._map(image_Bd))
            blocks = _over_classes(gate, table, self._elements(image_Bd))
            sum_CB, weights_CVB = (torch.cat(parts) for parts in zip(*blocks, strict=True))
            weights_BCV = weights_CVB.permute(2, 0, 1)
            true_Bd = None
            if label_B is not None:
                true_BV = weights_BCV[torch.arange(len(label_B), device=label_B.device), label_B]
                true_Bd = torch.einsum("bv,bvd->bd", true_BV, table[0][label_B])
        return Routed(self.log_scale.exp() * sum_CB.T.contiguous(), weights_BCV, true_Bd)

    def ablate(
        self, image_Bd: Tensor, table: RouterTable, kept: Sequence[Sequence[int]], weights_FCV: Tensor
    ) -> Tensor:
        """Sums over other sentences, or with other weights, of the same gates and cosines."""
        with torch.autocast(image_Bd.device.type, enabled=False):
            image_Bd = image_Bd.float()
            kept_SV = image_Bd.new_zeros(len(kept), len(self.bias_V))
            for row_V, dimensions in zip(kept_SV, kept, strict=True):
                row_V[list(dimensions)] = 1
            body = partial(self._ablate, *self._map(image_Bd), kept_SV)
            blocks = _over_classes(body, (*table, weights_FCV.transpose(0, 1)), self._elements(image_Bd))
            return self.log_scale.exp() * torch.cat([block[0].permute(1, 2, 0) for block in blocks], dim=2)

    def _map(self, image_Bd: Tensor) -> tuple[Tensor, Tensor]:
        """The images' side of a batch: x + D_v x, unit length (V, B, d), and the gate's queries (V, B, k)."""
        mapped_VBd = F.normalize(image_Bd + image_Bd @ self.maps_Vdd, dim=-1)
        entries_Bd = image_Bd * math.sqrt(image_Bd.shape[1])  # of about unit variance
        return mapped_VBd, entries_Bd @ self.query_Vdk + self.query_bias_Vk[:, None]

    def _gate(self, mapped_VBd: Tensor, query_VBk: Tensor, unit_cVd: Tensor, keys_cVk: Tensor) -> tuple[Tensor, Tensor]:
        """A block's sum_v w cosine, (c, B), and gates w, (c, V, B)."""
        cosine_cVB, weights_cVB = self._cosines_and_gates(mapped_VBd, query_VBk, unit_cVd, keys_cVk)
        return (weights_cVB * cosine_cVB).sum(dim=1), weights_cVB

    def _ablate(
        self,
        mapped_VBd: Tensor,
        query_VBk: Tensor,
        kept_SV: Tensor,
        unit_cVd: Tensor,
        keys_cVk: Tensor,
        weights_cFV: Tensor,
    ) -> tuple[Tensor]:
        """A block's sums (c, S + F, B)."""
        cosine_cVB, gates_cVB = self._cosines_and_gates(mapped_VBd, query_VBk, unit_cVd, keys_cVk)
        return (torch.cat([kept_SV @ (gates_cVB * cosine_cVB), weights_cFV @ cosine_cVB], dim=1),)

    def _cosines_and_gates(
        self, mapped_VBd: Tensor, query_VBk: Tensor, unit_cVd: Tensor, keys_cVk: Tensor
    ) -> tuple[Tensor, Tensor]:
        cosine_cVB = torch.einsum("cvd,vbd->cvb", unit_cVd, mapped_VBd)
        gate_cVB = torch.einsum("cvk,vbk->cvb", keys_cVk, query_VBk) + self.bias_V[:, None]
        return cosine_cVB, 2 / len(self.bias_V) * gate_cVB.sigmoid()

    def _elements(self, image_Bd: Tensor) -> int:
        """Numbers that gating of a batch holds per class."""
        return 4 * len(self.bias_V) * len(image_Bd)


ROUTERS: dict[str, Callable[[TuneParams, int, int], Router]] = {
    "attention": lambda params, width, dimensions: AttentionRouter(
        width, params.router_heads, params.router_dropout, params.router_temperature, params.router_init
    ),
    "paired_gate": lambda params, width, dimensions: PairedGate(width, dimensions),
}


def _over_classes(
    body: Callable[..., tuple[Tensor, ...]], table: RouterTable, elements_per_class: int, random: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """`body(*rows of the table)` for each block of classes; what it computes is made again in the backward pass.

    `elements_per_class` are the numbers that `body` holds per class; `random`: it draws random numbers, the same
    ones in both passes.
    """
    block = max(1, BLOCK_ELEMENTS[table[0].device.type] // elements_per_class)
    for rows in zip(*(tensor.split(block) for tensor in table), strict=True):
        if torch.is_grad_enabled():
            yield checkpoint(body, *rows, use_reentrant=False, preserve_rng_state=random)
        else:
            yield body(*rows)
