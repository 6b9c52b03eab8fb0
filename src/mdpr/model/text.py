"""Learned context in the text tower, every token computed once.

A class's text is `<start> c_1 ... c_n name . <end>`. Three exact savings over 77 tokens for every class:

- Crop. Under a causal mask no token sees what follows it, so nothing after the last end token is needed.
- Prefix. With a context shared by all classes, the start token and the n context tokens see only each other: their
  states are the same for every class at every layer, deep prompts included. They run once, and each class runs its
  own name alone, attending to the shared keys and values.
- Without learned context the features are constants; `backbone.encode_text` gives them once.

Cropping needs a causal tower that pools at the end token; the prefix also needs a shared context and blocks made of
`nn.MultiheadAttention`. `PromptedText` sees for itself which holds and falls back where one does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdpr.errors import BackboneError

TextPath = Literal["prefix", "crop", "full"]


class PromptedText(nn.Module):
    """Class features of a frozen text tower with n learned context tokens after the start token.

    Arguments: the tower; `tokens_CT`, token ids of "X X ... X name." with n words standing in for the context; n.
    """

    tokens_CT: Tensor

    def __init__(self, text: TextTransformer, tokens_CT: Tensor, context_tokens: int) -> None:
        super().__init__()
        self.text = text
        self.context_tokens = context_tokens
        self.crops = text.attn_mask is not None and text.cls_emb is None and text.pool_type in ("argmax", "eos")
        self.shares_prefix = self.crops and all(
            type(block) is ResidualAttentionBlock and block.attn.batch_first for block in text.transformer.resblocks
        )
        if self.crops:
            end_C = _end_positions(tokens_CT, text)
            tokens_CT = tokens_CT[:, : int(end_C.max()) + 1]
        self.register_buffer("tokens_CT", tokens_CT, persistent=False)

    def path_for(self, context: Sequence[Tensor]) -> TextPath:
        """How features are computed for this context: `prefix`, `crop` or `full`."""
        if self.shares_prefix and context and all(prompt.dim() == 2 for prompt in context):
            return "prefix"
        return "crop" if self.crops else "full"

    def forward(self, context: Sequence[Tensor], checkpoint_blocks: bool = False) -> Tensor:
        """Unit-length features (C, d), float32.

        `context[i]`, shape (n, w) shared by the classes or (C, n, w) one a class, stands in places 1..n while block i
        runs, for i < J = len(context).
        """
        if self.path_for(context) == "prefix":
            pooled_Cw = self._prefix_features(context, checkpoint_blocks)
        else:
            pooled_Cw = self._all_token_features(context, checkpoint_blocks)
        projection = self.text.text_projection
        if isinstance(projection, nn.Linear):
            pooled_Cw = projection(pooled_Cw)
        elif projection is not None:
            pooled_Cw = pooled_Cw @ projection
        return F.normalize(pooled_Cw.float(), dim=-1)

    def _all_token_features(self, context: Sequence[Tensor], checkpoint_blocks: bool) -> Tensor:
        """Every class runs every token that is left after cropping; pooled (C, w)."""
        text, n = self.text, self.context_tokens
        x_CTw, mask = text._embeds(self.tokens_CT)
        tokens = x_CTw.shape[1]
        if mask is not None:
            mask = mask[..., :tokens, :tokens]
        for depth, block in enumerate(text.transformer.resblocks):
            if depth < len(context):
                prompt = context[depth].to(x_CTw.dtype)
                if depth == 0:  # the embedding of a token holds its position; later states hold it already
                    prompt = prompt + text.positional_embedding[1 : 1 + n].to(x_CTw.dtype)
                prompt = prompt.expand(len(x_CTw), -1, -1)
                x_CTw = torch.cat([x_CTw[:, :1], prompt, x_CTw[:, 1 + n :]], dim=1)
            if checkpoint_blocks:
                x_CTw = checkpoint(block, x_CTw, attn_mask=mask, use_reentrant=False)
            else:
                x_CTw = block(x_CTw, attn_mask=mask)
        if text.cls_emb is not None:  # CoCa appends a class token and pools it, whatever pool_type says
            return text.ln_final(text_global_pool(x_CTw, pool_type="last"))
        return text_global_pool(
            text.ln_final(x_CTw), self.tokens_CT, pool_type=text.pool_type, eos_token_id=text.eos_id
        )

    def _prefix_features(self, context: Sequence[Tensor], checkpoint_blocks: bool) -> Tensor:
        """The prefix runs once, each class runs its name; pooled (C, w). S: longest name, end token included."""
        text, n = self.text, self.context_tokens
        x_CTw, _ = text._embeds(self.tokens_CT)
        prefix_1Pw, name_CSw = x_CTw[:1, : 1 + n], x_CTw[:, 1 + n :]
        for depth, block in enumerate(text.transformer.resblocks):
            if depth < len(context):
                prompt = context[depth].to(prefix_1Pw.dtype)
                if depth == 0:
                    prompt = prompt + text.positional_embedding[1 : 1 + n].to(prefix_1Pw.dtype)
                prefix_1Pw = torch.cat([prefix_1Pw[:, :1], prompt[None]], dim=1)
            if checkpoint_blocks:
                prefix_1Pw, name_CSw = checkpoint(_prefix_block, block, prefix_1Pw, name_CSw, use_reentrant=False)
            else:
                prefix_1Pw, name_CSw = _prefix_block(block, prefix_1Pw, name_CSw)
        end_C = _end_positions(self.tokens_CT, text) - (1 + n)
        return text.ln_final(name_CSw[torch.arange(len(name_CSw), device=end_C.device), end_C])


def class_tokens(
    tokenize: Callable[[list[str]], Tensor], class_names: Sequence[str], context_tokens: int, context_length: int
) -> Tensor:
    """Token ids (C, T) of "X X ... X name.", n words of one token each standing in for the context."""
    try:
        return tokenize([f"{'X ' * context_tokens}{name}." for name in class_names])
    except BackboneError as error:
        raise BackboneError(
            f"tune.context_tokens = {context_tokens} leaves no room in {context_length} text tokens: {error}"
        ) from None


def _end_positions(tokens_CT: Tensor, text: TextTransformer) -> Tensor:
    """Place (C,) of the end token, found the way the tower's own pooling finds it."""
    if text.pool_type == "eos":
        return (tokens_CT == text.eos_id).int().argmax(dim=-1)
    return tokens_CT.argmax(dim=-1)


def _prefix_block(block: ResidualAttentionBlock, prefix_1Pw: Tensor, name_CSw: Tensor) -> tuple[Tensor, Tensor]:
    """One residual block on the shared prefix and on every class's name, with the block's own weights."""
    attention = block.attn
    q_1Pw, k_1Pw, v_1Pw = _project(attention, block.ln_1(prefix_1Pw))
    q_CSw, k_CSw, v_CSw = _project(attention, block.ln_1(name_CSw))
    heads = attention.num_heads
    prefix_out = F.scaled_dot_product_attention(
        _split(q_1Pw, heads), _split(k_1Pw, heads), _split(v_1Pw, heads), is_causal=True
    )
    name_out = _attend_to_prefix_and_self(
        _split(q_CSw, heads),
        _split(k_CSw, heads),
        _split(v_CSw, heads),
        _split(k_1Pw, heads)[0],
        _split(v_1Pw, heads)[0],
    )
    return (
        _finish(block, prefix_1Pw, attention.out_proj(_merge(prefix_out))),
        _finish(block, name_CSw, attention.out_proj(_merge(name_out))),
    )


def _attend_to_prefix_and_self(q_ChSe: Tensor, k_ChSe: Tensor, v_ChSe: Tensor, k_hPe: Tensor, v_hPe: Tensor) -> Tensor:
    """Softmax attention of name tokens over [prefix, own name so far] without a copy of the prefix for each class."""
    classes, heads, names, width = q_ChSe.shape
    scaled = q_ChSe * width**-0.5
    # One matrix product a head for all classes: (h, C*S, e) x (h, e, P).
    q_hNe = scaled.transpose(0, 1).reshape(heads, classes * names, width)
    to_prefix = (q_hNe @ k_hPe.transpose(1, 2)).view(heads, classes, names, -1).transpose(0, 1)
    to_self = scaled @ k_ChSe.transpose(-1, -2)
    later = torch.ones(names, names, dtype=torch.bool, device=q_ChSe.device).triu(1)
    to_self = to_self.masked_fill(later, float("-inf"))
    weights = torch.cat([to_prefix, to_self], dim=-1).softmax(dim=-1).to(v_ChSe.dtype)
    on_prefix, on_self = weights.split([k_hPe.shape[1], names], dim=-1)
    from_prefix = on_prefix.transpose(0, 1).reshape(heads, classes * names, -1) @ v_hPe
    return from_prefix.view(heads, classes, names, width).transpose(0, 1) + on_self @ v_ChSe


def _project(attention: nn.MultiheadAttention, x_NLw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = F.linear(x_NLw, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    return q, k, v


def _finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _split(x_NLw: Tensor, heads: int) -> Tensor:
    """(N, L, w) to (N, h, L, e)."""
    return x_NLw.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x_NhLe: Tensor) -> Tensor:
    """(N, h, L, e) to (N, L, w)."""
    return x_NhLe.transpose(1, 2).flatten(2)
