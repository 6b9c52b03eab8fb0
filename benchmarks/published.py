"""The published computation of MDPR, written plainly: what `benchmarks.speed` compares with.

It runs on the parameters of our own model, so both give the same numbers. What it does as published: all 77 text
tokens of every class in every step and every evaluation batch; every image and learned token through every block;
queries repeated to (B*C, d) and keys to (B*C*V, d) through `nn.MultiheadAttention`; z for every (image, class) pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor

from mdpr.model.classifier import MDPR, Outputs
from mdpr.model.routing import AttentionRouter, Routed
from mdpr.model.towers import PromptedText, class_tokens


def route_repeated(router: AttentionRouter, image_Bd: Tensor, sentences_CVd: Tensor, label_B: Tensor | None) -> Routed:
    """The router on repeated tensors."""
    B, (C, V, d) = len(image_Bd), sentences_CVd.shape
    router.attention.dropout = router.dropout
    router.attention.train(router.training)
    query = image_Bd.repeat_interleave(C, dim=0).view(B * C, 1, d)
    keys = sentences_CVd.repeat(B, 1, 1)
    z, weights = router.attention(query, keys, keys, need_weights=True)
    z_BCd = z.view(B, C, d)
    cosine_BC = (image_Bd[:, None] * F.normalize(z_BCd, dim=-1)).sum(-1)
    true_Bd = None if label_B is None else z_BCd[torch.arange(B, device=z.device), label_B]
    return Routed(cosine_BC, weights.view(B, C, V), true_Bd)


def image_features(visual: VisionTransformer, image_B3HW: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """Unit-length features (B, d): every token, learned ones included, through every block as it stands."""
    x_BLw = visual._embeds(image_B3HW)
    own = x_BLw.shape[1]
    for depth, block in enumerate(visual.transformer.resblocks):
        if depth < len(prompts):
            learned_nw = prompts[depth] if depth else visual.ln_pre(prompts[depth])
            x_BLw = torch.cat([x_BLw[:, :own], learned_nw.to(x_BLw.dtype).expand(len(x_BLw), -1, -1)], dim=1)
        x_BLw = block(x_BLw)
    pooled_Bw, _ = visual._pool(x_BLw[:, :own])
    return F.normalize((pooled_Bw if visual.proj is None else pooled_Bw @ visual.proj).float(), dim=-1)


class Published:
    """Forward of the published code on the parameters of `model` (MaPLe prompts and the router)."""

    def __init__(self, model: MDPR, class_names: list[str], checkpoint_text: bool = False) -> None:
        self.model = model
        text, n = model.backbone.text, model.params.context_tokens
        tokens_CT = class_tokens(model.backbone.tokenize, class_names, n, text.context_length)
        self.text = PromptedText(text, tokens_CT, n)
        self.text.crops = self.text.shares_prefix = False
        self.text.tokens_CT = tokens_CT
        self.checkpoint_text = checkpoint_text

    def text_features(self) -> Tensor:
        return self.text(self.model.tuner().text, checkpoint_blocks=self.checkpoint_text and torch.is_grad_enabled())

    def __call__(self, image_B3HW: Tensor, label_B: Tensor | None = None) -> Outputs:
        model = self.model
        assert isinstance(model.router, AttentionRouter)
        image_Bd = image_features(model.backbone.visual, image_B3HW, model.tuner().visual)
        scale = model.logit_scale
        base_BC = scale * image_Bd @ self.text_features().T
        routed = route_repeated(model.router, image_Bd, model.sentences_CVd, label_B)
        routed_BC = scale * routed.similarity_BC
        fused_BC = model.fusion(base_BC.detach(), routed_BC.detach())
        return Outputs(image_Bd, base_BC, fused_BC, routed_BC, routed.weights_BCV, routed.true_Bd)
