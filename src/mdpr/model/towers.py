"""The frozen towers with what is learned in them, walked through open_clip's own blocks. Every token is computed once.

Image tower (VPT, MaPLe). A learned token that the next layer replaces is only attended to: its keys and values are
needed, and they are the same for every image. In the last block only the tokens that are pooled go on; in most towers
that is the class token. A `BlockAdapter` changes the outputs of a block's affine maps, or adds to its MLP.

Text tower. A class's text is `<start> c_1 ... c_n name . <end>`. Three exact savings over 77 tokens for every class:

- Crop. Under a causal mask no token sees what follows it, so nothing after the last end token is needed.
- Prefix. With a context shared by all classes, the start token and the n context tokens see only each other: their
  states are the same for every class at every layer, deep prompts included. They run once, and each class runs only
  its own name, attending to the shared keys and values. Names differ in length: outside the attention their tokens run
  as one list, without padding. In the last block only the end tokens go on, as nothing else is pooled.
- Without learned context the features are constants; `backbone.encode_text` computes them once.

Cropping needs a causal tower that pools at the end token; the prefix also needs a shared context and blocks made of
`nn.MultiheadAttention`. `PromptedText` checks both and falls back to the full computation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeGuard

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from mdpr.errors import BackboneError


def is_plain(block: Any) -> TypeGuard[ResidualAttentionBlock]:
    """Whether `block` is open_clip's common one, around `nn.MultiheadAttention`: the functions below take only it."""
    return type(block) is ResidualAttentionBlock and block.attn.batch_first


class MapChange(nn.Module):
    """A learned change of an affine map y = W x + b that is affine itself."""

    def forward(self, x: Tensor, y: Tensor, rows: slice) -> Tensor:
        """The new output; y may hold only these rows of it."""
        raise NotImplementedError

    def merge(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """W and b of the changed map; W is a vector for the gain of a norm."""
        raise NotImplementedError


class BlockAdapter(nn.Module):
    """Learned changes of one plain block, all without effect at the start.

    changes   of affine maps, by their names in `affine_maps`
    parallel  a module whose output is added to the MLP's, from the same residual stream
    """

    def __init__(self, changes: Mapping[str, MapChange], parallel: nn.Module | None = None) -> None:
        super().__init__()
        self.changes = nn.ModuleDict(changes)
        self.parallel = parallel

    def forward(self, name: str, x: Tensor, y: Tensor, rows: slice = slice(None)) -> Tensor:
        """The map's new output, from its input x and its output y, which may hold only these rows of it."""
        changed: Tensor = self.changes[name](x, y, rows) if name in self.changes else y
        return changed


def affine_maps(block: ResidualAttentionBlock) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Weight and bias of the affine maps of a plain block; `in_proj` is query, key and value, one below the other."""
    attention, mlp = block.attn, block.mlp
    modules = {"ln_1": block.ln_1, "out_proj": attention.out_proj, "ln_2": block.ln_2}
    modules |= {"c_fc": mlp.c_fc, "c_proj": mlp.c_proj}
    maps = {name: (module.weight, module.bias) for name, module in modules.items()}
    return maps | {"in_proj": (attention.in_proj_weight, attention.in_proj_bias)}


def run_block(
    block: nn.Module,
    x_BLw: Tensor,
    shared_nw: Tensor | None = None,
    rows: int | None = None,
    adapter: BlockAdapter | None = None,
) -> Tensor:
    """The first `rows` tokens (default: all L of them) of x after `block`; every token attends to every one.

    `shared_nw` are n further tokens, the same for the whole batch, that are only attended to: nothing but their keys
    and values is computed, once. A block that is not plain runs every token and drops the rest. Returns (B, rows, w).
    """
    rows = rows or x_BLw.shape[1]
    if not is_plain(block):
        if shared_nw is not None:
            x_BLw = torch.cat([x_BLw, shared_nw.expand(len(x_BLw), -1, -1)], dim=1)
        return block(x_BLw)[:, :rows]
    attention = block.attn
    normal_BLw = _through(block.ln_1, x_BLw, adapter, "ln_1")
    if rows == x_BLw.shape[1]:
        q_BRw, k_BLw, v_BLw = query_key_value(attention, normal_BLw, adapter).chunk(3, dim=-1)
    else:
        q_BRw = query(attention, normal_BLw[:, :rows], adapter)
        k_BLw, v_BLw = key_value(attention, normal_BLw, adapter).chunk(2, dim=-1)
    if shared_nw is not None:
        k_nw, v_nw = key_value(attention, _through(block.ln_1, shared_nw, adapter, "ln_1"), adapter).chunk(2, dim=-1)
        k_BLw = torch.cat([k_BLw, k_nw.expand(len(x_BLw), -1, -1)], dim=1)
        v_BLw = torch.cat([v_BLw, v_nw.expand(len(x_BLw), -1, -1)], dim=1)
    heads = attention.num_heads
    attended = F.scaled_dot_product_attention(split(q_BRw, heads), split(k_BLw, heads), split(v_BLw, heads))
    return finish(block, x_BLw[:, :rows], merge(attended), adapter)


def query_key_value(attention: nn.MultiheadAttention, x: Tensor, adapter: BlockAdapter | None = None) -> Tensor:
    """Query, key and value side by side, (..., 3w), of tokens (..., w)."""
    return _in_proj(attention, x, slice(None), adapter)


def query(attention: nn.MultiheadAttention, x: Tensor, adapter: BlockAdapter | None = None) -> Tensor:
    """Query (..., w) of tokens (..., w)."""
    return _in_proj(attention, x, slice(None, attention.embed_dim), adapter)


def key_value(attention: nn.MultiheadAttention, x: Tensor, adapter: BlockAdapter | None = None) -> Tensor:
    """Key and value side by side, (..., 2w), of tokens (..., w)."""
    return _in_proj(attention, x, slice(attention.embed_dim, None), adapter)


def _in_proj(attention: nn.MultiheadAttention, x: Tensor, rows: slice, adapter: BlockAdapter | None) -> Tensor:
    y = F.linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
    return y if adapter is None else adapter("in_proj", x, y, rows)


def _through(module: nn.Module, x: Tensor, adapter: BlockAdapter | None, name: str) -> Tensor:
    y: Tensor = module(x)
    return y if adapter is None else adapter(name, x, y)


def finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor, adapter: BlockAdapter | None = None) -> Tensor:
    """The rest of a block after the heads: output projection, both residual sums, the MLP. All (..., w)."""
    x = x + block.ls_1(_through(block.attn.out_proj, attended, adapter, "out_proj"))
    if adapter is None:
        return x + block.ls_2(block.mlp(block.ln_2(x)))
    hidden = block.mlp.gelu(_through(block.mlp.c_fc, _through(block.ln_2, x, adapter, "ln_2"), adapter, "c_fc"))
    added = block.ls_2(_through(block.mlp.c_proj, hidden, adapter, "c_proj"))
    return x + added if adapter.parallel is None else x + added + adapter.parallel(x)


def split(x: Tensor, heads: int) -> Tensor:
    """(..., L, w) to (..., h, L, e)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge(x: Tensor) -> Tensor:
    """(..., h, L, e) to (..., L, w)."""
    return x.transpose(-3, -2).flatten(-2)


def prompted_image_features(
    visual: VisionTransformer,
    image_B3HW: Tensor,
    prompts: Sequence[Tensor] = (),
    checkpoint_blocks: bool = False,
    adapters: Sequence[BlockAdapter] = (),
) -> Tensor:
    """Unit-length features (B, d), float32, of images with `prompts` in the tower, and an adapter per block or none.

    `prompts[i]`, shape (n, w), stands in the n last places while block i runs, for i < J = len(prompts); later blocks
    carry on with what became of the last ones. Without prompts the features are the stock tower's. The first prompt
    passes through ln_pre as the patches do (MaPLe, Khattak et al., CVPR 2023, inserts it just before).
    """
    x_BLw = visual._embeds(image_B3HW)
    own = x_BLw.shape[1]
    blocks = visual.transformer.resblocks
    for depth, block in enumerate(blocks):
        last = depth + 1 == len(blocks)
        learned_nw = None
        if depth < len(prompts):
            learned_nw = prompts[depth].to(x_BLw.dtype)
            if depth == 0:
                learned_nw = visual.ln_pre(learned_nw)
            if depth + 1 == len(prompts) and not last:  # not replaced: from here on tokens like any other
                x_BLw = torch.cat([x_BLw, learned_nw.expand(len(x_BLw), -1, -1)], dim=1)
                learned_nw = None
        rows = (_pooled_tokens(visual) or own) if last else None
        adapter = adapters[depth] if adapters else None
        if checkpoint_blocks:
            x_BLw = checkpoint(run_block, block, x_BLw, learned_nw, rows, adapter, use_reentrant=False)
        else:
            x_BLw = run_block(block, x_BLw, learned_nw, rows, adapter)
    pooled_Bw, _ = visual._pool(x_BLw)
    features_Bd = pooled_Bw if visual.proj is None else pooled_Bw @ visual.proj
    return F.normalize(features_Bd.float(), dim=-1)


def _pooled_tokens(visual: VisionTransformer) -> int | None:
    """How many leading tokens the tower pools: the class token, or None for all."""
    return 1 if visual.pool_type == "tok" and visual.attn_pool is None else None


@torch.no_grad()
def merged_tower(visual: VisionTransformer, adapters: Sequence[BlockAdapter]) -> nn.Module:
    """The tower with the adapters' changes in its own weights: it costs what the stock one costs.

    Weights that do not change are shared with `visual`. No adapter may be parallel.
    """
    names = {id(tensor): name for name, tensor in visual.named_parameters()}
    weights: dict[str, Tensor] = {}
    for block, adapter in zip(visual.transformer.resblocks, adapters, strict=True):
        maps = affine_maps(block)
        for name, change in adapter.changes.items():
            assert isinstance(change, MapChange)
            for old, new in zip(maps[name], change.merge(*maps[name]), strict=True):
                weights[names[id(old)]] = new
    return with_weights(visual, weights)


@torch.no_grad()
def with_weights(tower: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `tower` with other weights under these names; it shares all others with `tower`."""
    shared: dict[int, Any] = {id(value): value for name, value in tower.named_parameters() if name not in weights}
    changed = copy.deepcopy(tower, shared)
    for name, value in weights.items():
        changed.get_parameter(name).copy_(value)
    return changed


def updated_weights(tower: nn.Module, updates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `tower` under these names, plus the updates."""
    return {name: tower.get_parameter(name) + update for name, update in updates.items()}


def image_features(tower: nn.Module, image_B3HW: Tensor, updates: Mapping[str, Tensor] | None = None) -> Tensor:
    """Unit-length features (B, d), float32, of a tower of any kind, without prompts.

    `updates` are added to the weights under their names; a tower that takes prompts has none.
    """
    if isinstance(tower, VisionTransformer) and not updates:  # the same, without what the tower computes and drops
        return prompted_image_features(tower, image_B3HW)
    features_Bd = functional_call(tower, updated_weights(tower, updates or {}), (image_B3HW,))
    return F.normalize(features_Bd.float(), dim=-1)


TextPath = Literal["prefix", "crop", "full"]
WHOLE_CLASSES = 2048  # so many classes go through the tower at once
BLOCK_CLASSES = 512  # of more of them


class PromptedText(nn.Module):
    """Class features of a frozen text tower with n learned context tokens after the start token.

    Arguments: the tower; `tokens_CT`, token ids of "X X ... X name." with n words standing in for the context; n.
    """

    tokens_CT: Tensor
    beyond_CS: Tensor

    def __init__(self, text: TextTransformer, tokens_CT: Tensor, context_tokens: int) -> None:
        super().__init__()
        self.text = text
        self.context_tokens = context_tokens
        self.crops = text.attn_mask is not None and text.cls_emb is None and text.pool_type in ("argmax", "eos")
        self.shares_prefix = self.crops and all(is_plain(block) for block in text.transformer.resblocks)
        if self.crops:
            end_C = _end_positions(tokens_CT, text)
            tokens_CT = tokens_CT[:, : int(end_C.max()) + 1]
            length_C = end_C - context_tokens
            beyond_CS = torch.arange(int(length_C.max()), device=end_C.device) >= length_C[:, None]
            self.register_buffer("beyond_CS", beyond_CS, persistent=False)
        self.register_buffer("tokens_CT", tokens_CT, persistent=False)

    def path_for(self, context: Sequence[Tensor]) -> TextPath:
        """How features are computed for this context: `prefix`, `crop` or `full`."""
        if self.shares_prefix and context and all(prompt.dim() == 2 for prompt in context):
            return "prefix"
        return "crop" if self.crops else "full"

    def forward(self, context: Sequence[Tensor], checkpoint_blocks: bool = False) -> Tensor:
        """Unit-length features (C, d), float32.

        `context[i]`, shape (n, w) shared by the classes or (C, n, w) one per class, stands in places 1..n while block i
        runs, for i < J = len(context). More than `WHOLE_CLASSES` classes go through the tower in blocks of
        `BLOCK_CLASSES`; what a block computes is made again in the backward pass.
        """
        of_classes = partial(self._all_token_features, context, checkpoint_blocks)
        if self.path_for(context) == "prefix":
            of_classes = partial(self._name_features, self._prefix_states(context), checkpoint_blocks)
        classes = len(self.tokens_CT)
        step = classes if classes <= WHOLE_CLASSES else BLOCK_CLASSES
        blocks = [slice(first, first + step) for first in range(0, classes, step)]
        if len(blocks) > 1 and torch.is_grad_enabled():
            of_classes = partial(checkpoint, of_classes, use_reentrant=False)
        pooled_Cw = torch.cat([of_classes(rows) for rows in blocks])
        projection = self.text.text_projection
        if isinstance(projection, nn.Linear):
            pooled_Cw = projection(pooled_Cw)
        elif projection is not None:
            pooled_Cw = pooled_Cw @ projection
        return F.normalize(pooled_Cw.float(), dim=-1)

    def _all_token_features(self, context: Sequence[Tensor], checkpoint_blocks: bool, rows: slice) -> Tensor:
        """The classes `rows` run every token that is left after cropping; pooled (c, w)."""
        text, n, tokens_cT = self.text, self.context_tokens, self.tokens_CT[rows]
        x_cTw, mask = text._embeds(tokens_cT)
        tokens = x_cTw.shape[1]
        if mask is not None:
            mask = mask[..., :tokens, :tokens]
        for depth, block in enumerate(text.transformer.resblocks):
            if depth < len(context):
                prompt = context[depth].to(x_cTw.dtype)
                if prompt.dim() == 3:
                    prompt = prompt[rows]
                if depth == 0:  # the embedding of a token holds its position; later states hold it already
                    prompt = prompt + text.positional_embedding[1 : 1 + n].to(x_cTw.dtype)
                prompt = prompt.expand(len(x_cTw), -1, -1)
                x_cTw = torch.cat([x_cTw[:, :1], prompt, x_cTw[:, 1 + n :]], dim=1)
            if checkpoint_blocks:
                x_cTw = checkpoint(block, x_cTw, attn_mask=mask, use_reentrant=False)
            else:
                x_cTw = block(x_cTw, attn_mask=mask)
        if text.cls_emb is not None:  # CoCa appends a class token and pools it, whatever pool_type says
            return text.ln_final(text_global_pool(x_cTw, pool_type="last"))
        return text_global_pool(text.ln_final(x_cTw), tokens_cT, pool_type=text.pool_type, eos_token_id=text.eos_id)

    def _prefix_states(self, context: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (h, P, e) of the shared prefix in each block: start token and context run once."""
        text, n = self.text, self.context_tokens
        x_1Tw, _ = text._embeds(self.tokens_CT[:1])
        prefix_Pw = x_1Tw[0, : 1 + n]
        states = []
        for depth, block in enumerate(text.transformer.resblocks):
            if depth < len(context):
                prompt = context[depth].to(prefix_Pw.dtype)
                if depth == 0:
                    prompt = prompt + text.positional_embedding[1 : 1 + n].to(prefix_Pw.dtype)
                prefix_Pw = torch.cat([prefix_Pw[:1], prompt])
            attention, heads = block.attn, block.attn.num_heads
            q_hPe, k_hPe, v_hPe = split(query_key_value(attention, block.ln_1(prefix_Pw)), 3 * heads).chunk(3)
            states.append((k_hPe, v_hPe))
            if len(states) < len(text.transformer.resblocks):  # nothing reads the prefix after the last block
                attended = F.scaled_dot_product_attention(q_hPe[None], k_hPe[None], v_hPe[None], is_causal=True)[0]
                prefix_Pw = finish(block, prefix_Pw, merge(attended))
        return states

    def _name_features(self, states: Sequence[tuple[Tensor, Tensor]], checkpoint_blocks: bool, rows: slice) -> Tensor:
        """The names of the classes `rows` run beside the prefix's keys and values; pooled (c, w)."""
        names = Names(self.beyond_CS[rows])
        x_cTw, _ = self.text._embeds(self.tokens_CT[rows])
        name_Nw = x_cTw[:, 1 + self.context_tokens :].flatten(0, 1).index_select(0, names.place_N)
        blocks = self.text.transformer.resblocks
        for depth, (block, (k_hPe, v_hPe)) in enumerate(zip(blocks, states, strict=True)):
            run = names.block if depth + 1 < len(blocks) else names.last_block
            if checkpoint_blocks:
                name_Nw = checkpoint(run, block, name_Nw, k_hPe, v_hPe, use_reentrant=False)
            else:
                name_Nw = run(block, name_Nw, k_hPe, v_hPe)
        return self.text.ln_final(name_Nw)


class Names:
    """The name tokens of C classes, N together, without the padding; in their padded form S places each.

    `beyond_CS` are the places after a name. `place_N`: place of each token in (C*S); `end_C`: each name's last token.
    """

    def __init__(self, beyond_CS: Tensor) -> None:
        self.beyond_CS = beyond_CS
        self.place_N = (~beyond_CS).flatten().nonzero().flatten()
        self.end_C = (~beyond_CS).sum(dim=1).cumsum(dim=0) - 1

    def block(self, block: ResidualAttentionBlock, name_Nw: Tensor, k_hPe: Tensor, v_hPe: Tensor) -> Tensor:
        """One residual block on the name tokens of every class."""
        attention, heads = block.attn, block.attn.num_heads
        q_ChSe, k_ChSe, v_ChSe = self._padded(query_key_value(attention, block.ln_1(name_Nw)), 3 * heads).chunk(3, 1)
        S = q_ChSe.shape[2]
        later_SS = torch.ones(S, S, dtype=torch.bool, device=q_ChSe.device).triu(1)
        name_out = _attend_to_prefix_and_self(q_ChSe, k_ChSe, v_ChSe, k_hPe, v_hPe, later_SS)
        return finish(block, name_Nw, merge(name_out).flatten(0, 1).index_select(0, self.place_N))

    def last_block(self, block: ResidualAttentionBlock, name_Nw: Tensor, k_hPe: Tensor, v_hPe: Tensor) -> Tensor:
        """The last block on the end token of every class, (C, w)."""
        attention, heads = block.attn, block.attn.num_heads
        normal_Nw = block.ln_1(name_Nw)
        k_ChSe, v_ChSe = self._padded(key_value(attention, normal_Nw), 2 * heads).chunk(2, 1)
        q_Ch1e = split(query(attention, normal_Nw.index_select(0, self.end_C))[:, None], heads)
        name_out = _attend_to_prefix_and_self(q_Ch1e, k_ChSe, v_ChSe, k_hPe, v_hPe, self.beyond_CS[:, None, None])
        return finish(block, name_Nw.index_select(0, self.end_C), merge(name_out)[:, 0])

    def _padded(self, x_Nw: Tensor, heads: int) -> Tensor:
        """Name tokens in their places, zeros beyond each name: (C, h, S, e)."""
        C, S = self.beyond_CS.shape
        padded = x_Nw.new_zeros(C * S, x_Nw.shape[1]).index_copy_(0, self.place_N, x_Nw)
        return split(padded.view(C, S, -1), heads)


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


def _attend_to_prefix_and_self(
    q_ChRe: Tensor, k_ChSe: Tensor, v_ChSe: Tensor, k_hPe: Tensor, v_hPe: Tensor, hidden: Tensor
) -> Tensor:
    """Softmax attention (C, h, R, e) of R name tokens per class over [prefix, own name] without the places `hidden`.

    The prefix is not copied per class. `hidden` is boolean and broadcasts to (C, h, R, S).
    """
    classes, heads, rows, width = q_ChRe.shape
    scaled = q_ChRe * width**-0.5
    # One matrix product per head for all classes: (h, C*R, e) x (h, e, P).
    q_hNe = scaled.transpose(0, 1).reshape(heads, classes * rows, width)
    to_prefix = (q_hNe @ k_hPe.transpose(1, 2)).view(heads, classes, rows, -1).transpose(0, 1)
    to_self = (scaled @ k_ChSe.transpose(-1, -2)).masked_fill(hidden, float("-inf"))
    weights = torch.cat([to_prefix, to_self], dim=-1).softmax(dim=-1).to(v_ChSe.dtype)
    on_prefix, on_self = weights.split([k_hPe.shape[1], v_ChSe.shape[2]], dim=-1)
    from_prefix = on_prefix.transpose(0, 1).reshape(heads, classes * rows, -1) @ v_hPe
    return from_prefix.view(heads, classes, rows, width).transpose(0, 1) + on_self @ v_ChSe
