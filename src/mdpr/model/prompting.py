"""Prompt tuners by name. Each owns the learned tokens of the two towers and nothing else.

none    no learned tokens: frozen features, only the router learns
coop    text context (Zhou et al., IJCV 2022), deep if prompt_depth > 1
vpt     visual tokens (Jia et al., ECCV 2022)
ivlp    both, independent of each other (Rasheed et al., CVPR 2023)
maple   both, the visual tokens a linear map of the text tokens at each depth (Khattak et al., CVPR 2023)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mdpr.errors import BackboneError, ConfigError
from mdpr.model.backbone import Backbone
from mdpr.params import TuneParams

INIT_STD = 0.02  # of random tokens, as in CoOp and MaPLe


@dataclass(frozen=True)
class Prompts:
    """Tokens for each layer of each tower; empty for a tower without learned tokens.

    Shapes (n, w of that tower); with a context per class, text tokens are (C, n, w).
    """

    text: tuple[Tensor, ...] = ()
    visual: tuple[Tensor, ...] = ()


class Tuner(nn.Module):
    """Learned tokens of both towers; `forward` gives them as `Prompts`."""

    def __init__(self, text: nn.Module | None = None, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.text = text
        self.visual = visual

    def forward(self) -> Prompts:
        text = self.text() if self.text is not None else ()
        visual = self.visual() if self.visual is not None else ()
        return Prompts(tuple(text), tuple(visual))


class Tokens(nn.Module):
    """n tokens at each of J layers: J parameters of shape (n, w), or (C, n, w) if each class has its own."""

    def __init__(
        self, depth: int, tokens: int, width: int, first: Tensor | None = None, classes: int | None = None
    ) -> None:
        super().__init__()
        shape = (tokens, width) if classes is None else (classes, tokens, width)
        self.layers = nn.ParameterList([torch.randn(shape) * INIT_STD for _ in range(depth)])
        if first is not None:
            with torch.no_grad():
                self.layers[0][..., tokens - len(first) :, :] = first

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(self.layers)


class Coupled(Tuner):
    """MaPLe: one linear map per depth turns text tokens into visual tokens."""

    def __init__(self, text: Tokens, text_width: int, visual_width: int) -> None:
        super().__init__(text)
        self.maps = nn.ModuleList([nn.Linear(text_width, visual_width) for _ in text.layers])

    def forward(self) -> Prompts:
        assert isinstance(self.text, Tokens)
        text = self.text()
        return Prompts(text, tuple(to_visual(prompt) for to_visual, prompt in zip(self.maps, text, strict=True)))


def build_tuner(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    """The tuner `params.prompting` names, for so many classes; its tokens come from the global torch generator.

    Raises `BackboneError` if a tower cannot take these prompts, `ConfigError` if the initial words do not fit into the
    context.
    """
    return TUNERS[params.prompting](backbone, params, classes)


def _none(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    return Tuner()


def _coop(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    return Tuner(text=_text_tokens(backbone, params, classes))


def _vpt(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    return Tuner(visual=_visual_tokens(backbone, params))


def _ivlp(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    return Tuner(_text_tokens(backbone, params, classes), _visual_tokens(backbone, params))


def _maple(backbone: Backbone, params: TuneParams, classes: int) -> Tuner:
    _check_depth(backbone.architecture, "image", len(backbone.visual.transformer.resblocks), params.prompt_depth)
    text = _text_tokens(backbone, params, classes)
    return Coupled(text, backbone.text.width, backbone.visual.transformer.width)


TUNERS: dict[str, Callable[[Backbone, TuneParams, int], Tuner]] = {
    "none": _none,
    "coop": _coop,
    "vpt": _vpt,
    "ivlp": _ivlp,
    "maple": _maple,
}


def _text_tokens(backbone: Backbone, params: TuneParams, classes: int) -> Tokens:
    text = backbone.text
    _check_depth(backbone.architecture, "text", len(text.transformer.resblocks), params.prompt_depth)
    if params.context_tokens > text.context_length - 3:  # start, one name token, end
        raise BackboneError(
            f"tune.context_tokens = {params.context_tokens}: the text tower of {backbone.architecture} has "
            f"{text.context_length} places, {text.context_length - 3} of them free"
        )
    own = classes if params.context_scope == "class" else None
    return Tokens(params.prompt_depth, params.context_tokens, text.width, _initial_words(backbone, params), own)


def _visual_tokens(backbone: Backbone, params: TuneParams) -> Tokens:
    transformer = backbone.visual.transformer
    _check_depth(backbone.architecture, "image", len(transformer.resblocks), params.prompt_depth)
    return Tokens(params.prompt_depth, params.context_tokens, transformer.width)


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
