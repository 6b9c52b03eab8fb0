"""The image tower, with learned tokens (VPT, MaPLe) or without, walked through open_clip's own blocks.

Nothing is computed that no later layer reads. A learned token that the next layer replaces is only seen, never asked:
its keys and values are needed, and they are the same for every image. In the last block, of the tokens only those that
are pooled go on; in most towers that is the class token alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mdpr.model.blocks import run_block


def prompted_image_features(
    visual: VisionTransformer,
    image_B3HW: Tensor,
    prompts: Sequence[Tensor] = (),
    checkpoint_blocks: bool = False,
) -> Tensor:
    """Unit-length features (B, d), float32, of images with `prompts` in the tower.

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
        if checkpoint_blocks:
            x_BLw = checkpoint(run_block, block, x_BLw, learned_nw, rows, use_reentrant=False)
        else:
            x_BLw = run_block(block, x_BLw, learned_nw, rows)
    pooled_Bw, _ = visual._pool(x_BLw)
    features_Bd = pooled_Bw if visual.proj is None else pooled_Bw @ visual.proj
    return F.normalize(features_Bd.float(), dim=-1)


def _pooled_tokens(visual: VisionTransformer) -> int | None:
    """How many leading tokens the tower pools: the class token, or None for all."""
    return 1 if visual.pool_type == "tok" and visual.attn_pool is None else None
