"""Attention maps of the last block's CLS token, per head.

Shapes: B images, C channels, H x W pixels, h x w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino.models.vit import VisionTransformer


class ClsAttention(nn.Module):
    """A backbone's attention maps as a module that devices can compile."""

    def __init__(self, backbone: VisionTransformer) -> None:
        """Wrap a backbone."""
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Attention of CLS to each patch: (B, C, H, W) -> (B, heads, h, w); no N x N tensor."""
        row = self.backbone.get_last_selfattention(images, queries=slice(0, 1))[:, :, 0, 1:]
        return torch.unflatten(
            row, -1, [side // self.backbone.patch_size for side in images.shape[-2:]]
        )


def keep_mass(maps: Tensor, share: float) -> Tensor:
    """The strongest patches that hold a share of each map's attention (the original's `th_attn`).

    In ascending order, a patch is kept once the running sum exceeds 1 - `share`. This is the
    smallest set that holds the share.

    Args:
        maps: (..., h, w), not negative.
        share: 0 to 1.

    Returns:
        (..., h, w) bool.
    """
    ranked, order = maps.flatten(-2).sort(dim=-1, stable=True)
    kept = (ranked / ranked.sum(dim=-1, keepdim=True)).cumsum(dim=-1) > 1 - share
    return torch.unflatten(torch.zeros_like(kept).scatter(-1, order, kept), -1, maps.shape[-2:])


def add_mean(maps: Tensor) -> Tensor:
    """Append the mean over the heads: (..., heads, h, w) -> (..., heads + 1, h, w)."""
    return torch.cat([maps, maps.mean(dim=-3, keepdim=True)], dim=-3)
