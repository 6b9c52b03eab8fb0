"""Learned tokens in the image tower (VPT, MaPLe), walked through open_clip's own blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def prompted_image_features(
    visual: VisionTransformer,
    image_B3HW: Tensor,
    prompts: Sequence[Tensor],
    checkpoint_blocks: bool = False,
) -> Tensor:
    """Unit-length features (B, d), float32, of images with `prompts` in the tower.

    `prompts[i]`, shape (n, w), stands in the n last places while block i runs, for i < J = len(prompts); later blocks
    carry on with what became of the last ones. Without prompts this is the stock tower. The first prompt passes
    through ln_pre as the patches do (MaPLe, Khattak et al., CVPR 2023, inserts it just before).
    """
    x_BLw = visual._embeds(image_B3HW)
    own = x_BLw.shape[1]
    if prompts:
        first = visual.ln_pre(prompts[0].to(x_BLw.dtype))
        x_BLw = torch.cat([x_BLw, first.expand(len(x_BLw), -1, -1)], dim=1)
    for depth, block in enumerate(visual.transformer.resblocks):
        if 1 <= depth < len(prompts):
            prompt = prompts[depth].to(x_BLw.dtype).expand(len(x_BLw), -1, -1)
            x_BLw = torch.cat([x_BLw[:, :own], prompt], dim=1)
        x_BLw = checkpoint(block, x_BLw, use_reentrant=False) if checkpoint_blocks else block(x_BLw)
    pooled_Bw, _ = visual._pool(x_BLw[:, :own])
    features_Bd = pooled_Bw if visual.proj is None else pooled_Bw @ visual.proj
    return F.normalize(features_Bd.float(), dim=-1)
