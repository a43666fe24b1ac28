"""What stands for an image: one vector made of a backbone's tokens.

Shapes: B images, C channels, H W pixels, N tokens (CLS first), D width of the backbone, L chosen blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino.models.vit import VisionTransformer


class LastBlocks(nn.Module):
    """The CLS tokens of the last blocks, joined (paper, section 4.1; eval_linear.py in the original)."""

    def __init__(self, backbone: VisionTransformer, *, blocks: int, average_patches: bool) -> None:
        """Wrap a backbone.

        Args:
            backbone: (B, C, H, W) -> tokens; each block's are normalised by the network's last norm.
            blocks: How many of the last blocks, at most its depth.
            average_patches: Join the mean patch token of the last block too.
        """
        super().__init__()
        self.backbone, self.blocks, self.average_patches = backbone, blocks, average_patches
        self.embed_dim = backbone.embed_dim * (blocks + average_patches)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, blocks D), the last block last; (B, (blocks + 1) D) with the mean patch token.

        The mean alternates with the last block's CLS token, number by number, because the original joins the two along
        a new last axis and the published linear layers of the base networks expect it so.
        """
        layers = self.backbone.get_intermediate_layers(images, self.blocks)
        *earlier, last = (tokens[:, 0] for tokens in layers)
        if self.average_patches:
            last = torch.stack([last, layers[-1][:, 1:].mean(dim=1)], dim=-1).flatten(1)
        return torch.cat([*earlier, last], dim=-1)


class BlockTokens(nn.Module):
    """The tokens of chosen blocks, each normalised by the network's last norm."""

    def __init__(self, backbone: VisionTransformer, *, layers: tuple[int, ...], patches: bool) -> None:
        """Wrap a backbone.

        Args:
            backbone: (B, C, H, W) -> tokens.
            layers: Numbers of blocks, the first is 1.
            patches: Take all tokens, not the CLS token alone.
        """
        super().__init__()
        self.backbone, self.patches = backbone, patches
        first = min(layers)
        self.count = len(backbone.blocks) - first + 1
        self.places = [layer - first for layer in layers]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, N, D), or (B, L, 1, D) without patches; blocks in the order asked for."""
        layers = self.backbone.get_intermediate_layers(images, self.count)
        return torch.stack([layers[place][:, : None if self.patches else 1] for place in self.places], dim=1)
