"""One residual block of open_clip, run by its own sub-modules on the tokens that are needed and no others."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


def is_plain(block: Any) -> TypeGuard[ResidualAttentionBlock]:
    """Whether `block` is open_clip's common one, around `nn.MultiheadAttention`: the functions below take only it."""
    return type(block) is ResidualAttentionBlock and block.attn.batch_first


def run_block(block: nn.Module, x_BLw: Tensor, shared_nw: Tensor | None = None, rows: int | None = None) -> Tensor:
    """The first `rows` tokens (default: all L of them) of x after `block`; every token attends to every one.

    `shared_nw` are n further tokens, the same for the whole batch, that are seen and not asked for: their keys and
    values are computed once, and nothing else of them is. A block that is not plain runs every token and drops the
    rest. Returns (B, rows, w).
    """
    rows = rows or x_BLw.shape[1]
    if not is_plain(block):
        if shared_nw is not None:
            x_BLw = torch.cat([x_BLw, shared_nw.expand(len(x_BLw), -1, -1)], dim=1)
        return block(x_BLw)[:, :rows]
    attention = block.attn
    normal_BLw = block.ln_1(x_BLw)
    if rows == x_BLw.shape[1]:
        q_BRw, k_BLw, v_BLw = query_key_value(attention, normal_BLw).chunk(3, dim=-1)
    else:
        q_BRw = query(attention, normal_BLw[:, :rows])
        k_BLw, v_BLw = key_value(attention, normal_BLw).chunk(2, dim=-1)
    if shared_nw is not None:
        k_nw, v_nw = key_value(attention, block.ln_1(shared_nw)).chunk(2, dim=-1)
        k_BLw = torch.cat([k_BLw, k_nw.expand(len(x_BLw), -1, -1)], dim=1)
        v_BLw = torch.cat([v_BLw, v_nw.expand(len(x_BLw), -1, -1)], dim=1)
    heads = attention.num_heads
    attended = F.scaled_dot_product_attention(split(q_BRw, heads), split(k_BLw, heads), split(v_BLw, heads))
    return finish(block, x_BLw[:, :rows], merge(attended))


def query_key_value(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Query, key and value side by side, (..., 3w), of tokens (..., w)."""
    return F.linear(x, attention.in_proj_weight, attention.in_proj_bias)


def query(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Query (..., w) of tokens (..., w)."""
    width = attention.embed_dim
    return F.linear(x, attention.in_proj_weight[:width], attention.in_proj_bias[:width])


def key_value(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Key and value side by side, (..., 2w), of tokens (..., w)."""
    width = attention.embed_dim
    return F.linear(x, attention.in_proj_weight[width:], attention.in_proj_bias[width:])


def finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """What is left of a block after the heads: output projection, both residual sums, the MLP. All (..., w)."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def split(x: Tensor, heads: int) -> Tensor:
    """(..., L, w) to (..., h, L, e)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge(x: Tensor) -> Tensor:
    """(..., h, L, e) to (..., L, w)."""
    return x.transpose(-3, -2).flatten(-2)
