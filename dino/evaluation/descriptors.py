"""Descriptors of an image: one vector computed from a backbone's tokens.

Shapes: B images, C channels, H W pixels, N tokens (CLS first), D width of the backbone, L selected
blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.models.vit import VisionTransformer

GEM_EXPONENT = 4.0  # paper, section 4.2.1
GEM_LEAST = (
    1e-6  # smaller and negative numbers are raised to this (the original's extract_features)
)
SCALES = (1.0, 2**-0.5, 0.5)  # utils.multi_scale of the original


class ClsGem(nn.Module):
    """CLS token and generalized mean of the last layer's patch tokens.

    As in the original's eval_copy_detection.py.
    """

    def __init__(self, backbone: VisionTransformer) -> None:
        """Store the backbone."""
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 D), the CLS token first; not normalized."""
        tokens = self.backbone.get_intermediate_layers(images, n=1)[0]
        return torch.cat([tokens[:, 0], compute_gem(tokens[:, 1:])], dim=1)


def compute_gem(tokens: Tensor, exponent: float = GEM_EXPONENT) -> Tensor:
    """Compute the generalized mean over tokens, mean(x^p)^(1/p), x > 0: (B, N, D) -> (B, D)."""
    return tokens.clamp(min=GEM_LEAST).pow(exponent).mean(dim=1).pow(1 / exponent)


class MultiScale(nn.Module):
    """Mean of a backbone's features over three image sizes. Its length is arbitrary."""

    def __init__(self, backbone: nn.Module) -> None:
        """Store the backbone, (B, C, H, W) -> (B, D) for any H and W."""
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        sizes = [
            images,
            *(F.interpolate(images, scale_factor=scale, mode="bilinear") for scale in SCALES[1:]),
        ]
        return torch.stack([self.backbone(size) for size in sizes]).mean(dim=0)


class LastBlocks(nn.Module):
    """Concatenated CLS tokens of the last blocks (paper, section 4.1; eval_linear.py)."""

    def __init__(self, backbone: VisionTransformer, *, blocks: int, average_patches: bool) -> None:
        """Wrap a backbone.

        Args:
            backbone: (B, C, H, W) -> tokens, normalized by the network's last norm.
            blocks: Number of last blocks, at most the depth.
            average_patches: Append the mean patch token of the last block too.
        """
        super().__init__()
        self.backbone, self.blocks, self.average_patches = backbone, blocks, average_patches
        self.embed_dim = backbone.embed_dim * (blocks + average_patches)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, blocks D), or (B, (blocks + 1) D) with the mean patch token.

        The last block comes last. Its CLS token and the mean alternate, number by number, because
        the original joins the two along a new last axis. The published linear layers of the base
        networks expect this order.
        """
        layers = self.backbone.get_intermediate_layers(images, self.blocks)
        *earlier, last = (tokens[:, 0] for tokens in layers)
        if self.average_patches:
            last = torch.stack([last, layers[-1][:, 1:].mean(dim=1)], dim=-1).flatten(1)
        return torch.cat([*earlier, last], dim=-1)


class BlockTokens(nn.Module):
    """The tokens of selected blocks, each normalized by the network's last norm."""

    def __init__(
        self, backbone: VisionTransformer, *, layers: tuple[int, ...], patches: bool
    ) -> None:
        """Wrap a backbone.

        Args:
            backbone: (B, C, H, W) -> tokens.
            layers: Block numbers, starting at 1.
            patches: Return all tokens, not only the CLS token.
        """
        super().__init__()
        self.backbone, self.patches = backbone, patches
        first = min(layers)
        self.count = len(backbone.blocks) - first + 1
        self.places = [layer - first for layer in layers]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, N, D), or (B, L, 1, D) without patches, ordered as `layers`."""
        layers = self.backbone.get_intermediate_layers(images, self.count)
        tokens = None if self.patches else 1
        return torch.stack([layers[index][:, :tokens] for index in self.places], dim=1)
