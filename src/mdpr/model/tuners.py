"""Tuners by name (`tune.prompting`). Each owns what is learned in the two towers, and nothing else.

Tokens in the towers:

none         nothing learned in the towers: frozen features, only the router or the head learns
coop         text context (Zhou et al., IJCV 2022), deep if prompt_depth > 1
vpt          visual tokens (Jia et al., ECCV 2022)
ivlp         both, independent of each other (Rasheed et al., CVPR 2023)
maple        both, the visual tokens a linear map of the text tokens at each depth (Khattak et al., CVPR 2023)

Changes of every block of the image tower, which start without effect:

adaptformer  a narrow MLP beside the block's own (Chen et al., NeurIPS 2022)
lora         low-rank updates of query and value (Hu et al., ICLR 2022); in a tower that is not open_clip's own vision
             transformer (ResNet, timm), of every linear layer
ssf          scale and shift of the output of every affine map (Lian et al., NeurIPS 2022)
bitfit       the biases of every affine map (Ben Zaken et al., ACL 2022)

lora, ssf and bitfit are merged into the tower's weights for evaluation and serving.
Shapes: n tokens at a layer, w width of the tower, r rank or width of an adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from mdpr.errors import BackboneError, ConfigError
from mdpr.model.backbone import Backbone
from mdpr.model.towers import (
    BlockAdapter,
    MapChange,
    affine_maps,
    is_plain,
    merged_tower,
    updated_weights,
    with_weights,
)
from mdpr.params import TuneParams

INIT_STD = 0.02  # of random tokens, as in CoOp and MaPLe; of linear maps in the published code
PUBLISHED_DEEP_STD = 0.01  # of the tokens below the first layer


@dataclass(frozen=True)
class Prompts:
    """Tokens for each layer of each tower, and changes of the image tower; empty if nothing is learned.

    text, visual  tokens (n, w) of their tower; with a context per class, text tokens are (C, n, w)
    adapters      one per block of the image tower
    updates       what is added to weights of an image tower of another kind, by their names
    """

    text: tuple[Tensor, ...] = ()
    visual: tuple[Tensor, ...] = ()
    adapters: tuple[BlockAdapter, ...] = ()
    updates: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def change_images(self) -> bool:
        """Whether image features are others than those of the frozen tower."""
        return bool(self.visual or self.adapters or self.updates)


class Tuner(nn.Module):
    """Learned tokens of both towers and adapters of the image tower; `forward` gives them as `Prompts`."""

    def __init__(
        self,
        text: nn.Module | None = None,
        visual: nn.Module | None = None,
        adapters: Sequence[BlockAdapter] = (),
        linear: LinearUpdates | None = None,
    ) -> None:
        super().__init__()
        self.text = text
        self.visual = visual
        self.adapters = nn.ModuleList(adapters)
        self.linear = linear

    def forward(self) -> Prompts:
        text = self.text() if self.text is not None else ()
        visual = self.visual() if self.visual is not None else ()
        updates = self.linear() if self.linear is not None else {}
        return Prompts(tuple(text), tuple(visual), self.block_adapters, updates)

    @property
    def block_adapters(self) -> tuple[BlockAdapter, ...]:
        """One per block of the image tower, or none."""
        return tuple(adapter for adapter in self.adapters if isinstance(adapter, BlockAdapter))

    def merged(self, visual: nn.Module) -> nn.Module | None:
        """The image tower with what is learned in its weights; None if that is nothing, or cannot be merged."""
        if self.linear is not None:
            return with_weights(visual, updated_weights(visual, self.linear()))
        adapters = self.block_adapters
        mergeable = bool(adapters) and all(adapter.parallel is None for adapter in adapters)
        return merged_tower(visual, adapters) if mergeable and isinstance(visual, VisionTransformer) else None


class Tokens(nn.Module):
    """n tokens at each of J layers: J parameters of shape (n, w), or (C, n, w) if each class has its own."""

    def __init__(
        self,
        depth: int,
        tokens: int,
        width: int,
        first: Tensor | None = None,
        classes: int | None = None,
        deep_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        shape = (tokens, width) if classes is None else (classes, tokens, width)
        stds = [INIT_STD, *[deep_std] * (depth - 1)]
        self.layers = nn.ParameterList([torch.randn(shape) * std for std in stds])
        if first is not None:
            with torch.no_grad():
                self.layers[0][..., tokens - len(first) :, :] = first

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(self.layers)


class Coupled(Tuner):
    """MaPLe: one linear map per depth turns text tokens into visual tokens."""

    def __init__(self, text: Tokens, text_width: int, visual_width: int, init: str) -> None:
        super().__init__(text)
        self.maps = nn.ModuleList([linear_map(text_width, visual_width, init) for _ in text.layers])

    def forward(self) -> Prompts:
        assert isinstance(self.text, Tokens)
        text = self.text()
        return Prompts(text, tuple(to_visual(prompt) for to_visual, prompt in zip(self.maps, text, strict=True)))


def linear_map(inputs: int, outputs: int, init: str) -> nn.Linear:
    """A linear layer with torch's own initial weights, or N(0, 0.02) and no bias as in the published code."""
    layer = nn.Linear(inputs, outputs)
    if init == "published":
        nn.init.normal_(layer.weight, std=INIT_STD)
        nn.init.zeros_(layer.bias)
    return layer


class ScaleShift(MapChange):
    """y (1 + scale) + shift of the output y of an affine map; without `scales`, only a new bias."""

    def __init__(self, width: int, scales: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width)) if scales else None
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, y: Tensor, rows: slice) -> Tensor:
        shifted = y + self.shift[rows].to(y.dtype)
        return shifted if self.scale is None else shifted + y * self.scale[rows].to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is None:
            return weight, bias + self.shift
        factor = 1 + self.scale
        return (factor[:, None] if weight.dim() == 2 else factor) * weight, factor * bias + self.shift


class LowRank(MapChange):
    """W + up down for the rows of query and value in the joint projection (3w, w) of query, key and value."""

    CHANGED = (0, 2)  # of the thirds: query and value

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down_2rw = nn.Parameter(torch.empty(2, rank, width).uniform_(-1, 1) / math.sqrt(width))
        self.up_2wr = nn.Parameter(torch.zeros(2, width, rank))

    def forward(self, x: Tensor, y: Tensor, rows: slice) -> Tensor:
        width = x.shape[-1]
        first = (rows.start or 0) // width
        parts = list(y.split(width, dim=-1))
        for index, third in enumerate(self.CHANGED):
            if 0 <= third - first < len(parts):
                update = F.linear(F.linear(x, self.down_2rw[index]), self.up_2wr[index])
                parts[third - first] = parts[third - first] + update
        return torch.cat(parts, dim=-1)

    def merge(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        merged = weight.clone()
        for third, update_ww in zip(self.CHANGED, self.up_2wr @ self.down_2rw, strict=True):
            merged.chunk(3)[third].add_(update_ww)
        return merged, bias


class LinearUpdates(nn.Module):
    """up down for the weight of every linear layer of a tower, by the weight's name in it."""

    def __init__(self, shapes: Mapping[str, torch.Size], rank: int) -> None:
        super().__init__()
        self.names = tuple(shapes)
        self.down = nn.ParameterList(torch.empty(rank, i).uniform_(-1, 1) / math.sqrt(i) for _, i in shapes.values())
        self.up = nn.ParameterList(torch.zeros(o, rank) for o, _ in shapes.values())

    def forward(self) -> dict[str, Tensor]:
        return {name: up @ down for name, up, down in zip(self.names, self.up, self.down, strict=True)}


class Bottleneck(nn.Module):
    """scale * up relu(down norm x): a narrow MLP on the residual stream, with a norm of its own."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, narrow)
        self.up = nn.Linear(narrow, width)
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.up(self.down(self.norm(x)).relu())
        return self.scale.to(added.dtype) * added


def build_tuner(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    """The tuner `params.prompting` names, for so many classes; its weights come from the global torch generator.

    Raises `BackboneError` if a tower cannot take these prompts or adapters, `ConfigError` if the initial words do not
    fit into the context.
    """
    return TUNERS[params.prompting](backbone, params, classes)


def _maple(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    _check_depth(backbone.architecture, "image", len(backbone.visual.transformer.resblocks), params.prompt_depth)
    text = _text_tokens(backbone, params, classes)
    return Coupled(text, backbone.text.width, backbone.visual.transformer.width, params.init)


def _adaptformer(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    narrow = adapter_width(backbone, params, classes)
    width = backbone.visual.transformer.width
    return _adapted(backbone, lambda block: BlockAdapter({}, Bottleneck(width, narrow)))


def _lora(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    if not isinstance(backbone.clip.visual, VisionTransformer):
        return _linear_lora(backbone, params, classes)
    rank, width = adapter_width(backbone, params, classes), backbone.visual.transformer.width
    return _adapted(backbone, lambda block: BlockAdapter({"in_proj": LowRank(width, rank)}))


def _linear_lora(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    tower = backbone.clip.visual
    shapes = {f"{name}.weight": it.weight.shape for name, it in tower.named_modules() if isinstance(it, nn.Linear)}
    if not shapes:
        raise BackboneError(
            f"{backbone.architecture} has a {type(tower).__name__} image tower without linear layers, which takes no "
            "low-rank updates: use tune.prompting = none with tune.head = cosine"
        )
    narrowest = min(min(shape) for shape in shapes.values())
    return Tuner(linear=LinearUpdates(shapes, _bounded_width(backbone, params, classes, len(shapes), narrowest)))


def _every_map(block: ResidualAttentionBlock, scales: bool) -> BlockAdapter:
    return BlockAdapter({name: ScaleShift(len(bias), scales) for name, (_, bias) in affine_maps(block).items()})


TUNERS: dict[str, Callable[[Backbone, TuneParams, int], Tuner]] = {
    "none": lambda backbone, params, classes: Tuner(),
    "coop": lambda backbone, params, classes: Tuner(_text_tokens(backbone, params, classes)),
    "vpt": lambda backbone, params, classes: Tuner(visual=_visual_tokens(backbone, params)),
    "ivlp": lambda backbone, params, classes: Tuner(
        _text_tokens(backbone, params, classes), _visual_tokens(backbone, params)
    ),
    "maple": _maple,
    "adaptformer": _adaptformer,
    "lora": _lora,
    "ssf": lambda backbone, params, classes: _adapted(backbone, partial(_every_map, scales=True)),
    "bitfit": lambda backbone, params, classes: _adapted(backbone, partial(_every_map, scales=False)),
}


def adapter_width(backbone: Backbone, params: TuneParams, classes: int) -> int:
    """r, `params.adapter_width` or by LIFT's rule: 2^floor(log2(classes / (2 layers))), at least 1 and at most w.

    So the adapters have about as many weights as a linear classifier. Raises `BackboneError` if a given r is above w.
    Source: Shi et al., Long-Tail Learning with Foundation Model (LIFT), ICML 2024.
    """
    transformer = backbone.visual.transformer
    return _bounded_width(backbone, params, classes, len(transformer.resblocks), transformer.width)


def _bounded_width(backbone: Backbone, params: TuneParams, classes: int, layers: int, most: int) -> int:
    width = params.adapter_width or min(most, 2 ** max(0, math.floor(math.log2(classes / (2 * layers)))))
    if width > most:
        raise BackboneError(f"tune.adapter_width = {width}: the image tower of {backbone.architecture} is {most} wide")
    return width


def _adapted(backbone: Backbone, make: Callable[[ResidualAttentionBlock], BlockAdapter]) -> Tuner:
    """A tuner with an adapter for every block of the image tower."""
    blocks = backbone.visual.transformer.resblocks
    for block in blocks:
        if not is_plain(block):
            raise BackboneError(
                f"{backbone.architecture} has an image tower of {type(block).__name__}, which takes no adapters: use "
                "tune.prompting = vpt, or none with tune.head = cosine"
            )
    return Tuner(adapters=[make(block) for block in blocks])


def _text_tokens(backbone: Backbone, params: TuneParams, classes: int) -> Tokens:
    text = backbone.text
    _check_depth(backbone.architecture, "text", len(text.transformer.resblocks), params.prompt_depth)
    if params.context_tokens > text.context_length - 3:  # start, one name token, end
        raise BackboneError(
            f"tune.context_tokens = {params.context_tokens}: the text tower of {backbone.architecture} has "
            f"{text.context_length} places, {text.context_length - 3} of them free"
        )
    own, words = classes if params.context_scope == "class" else None, _initial_words(backbone, params)
    return Tokens(params.prompt_depth, params.context_tokens, text.width, words, own, _deep_std(params))


def _visual_tokens(backbone: Backbone, params: TuneParams) -> Tokens:
    transformer = backbone.visual.transformer
    _check_depth(backbone.architecture, "image", len(transformer.resblocks), params.prompt_depth)
    return Tokens(params.prompt_depth, params.context_tokens, transformer.width, deep_std=_deep_std(params))


def _deep_std(params: TuneParams) -> float:
    return PUBLISHED_DEEP_STD if params.init == "published" else INIT_STD


def _initial_words(backbone: Backbone, params: TuneParams) -> Tensor | None:
    """Token embeddings (k, w) of `context_init`, k <= n; they stand next to the name, random tokens before them."""
    if not params.context_init:
        return None
    ids = backbone.tokenizer.encode(params.context_init)
    if len(ids) > params.context_tokens:
        raise ConfigError(
            f"tune.context_init = {params.context_init!r} has {len(ids)} tokens, tune.context_tokens is "
            f"{params.context_tokens}: use fewer words or more tokens"
        )
    with torch.no_grad():
        return backbone.text.token_embedding(torch.tensor(ids, device=backbone.device)).float().cpu()


def _check_depth(architecture: str, tower: str, layers: int, depth: int) -> None:
    if depth > layers:
        raise BackboneError(f"tune.prompt_depth = {depth}: the {tower} tower of {architecture} has {layers} layers")
