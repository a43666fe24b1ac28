"""What stands for an image: one vector made of a backbone's tokens.

Shapes: B images, C channels, H W pixels, N tokens (CLS first), D width of the backbone, L chosen blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.models.vit import VisionTransformer

GEM_EXPONENT = 4.0  # paper, section 4.2.1
GEM_LEAST = 1e-6  # smaller numbers, negative ones above all, count as this one (extract_features of the original)
SCALES = (1.0, 2**-0.5, 0.5)  # utils.multi_scale of the original


class ClsGem(nn.Module):
    """CLS token and generalised mean of the patch tokens of the last layer (the original's eval_copy_detection.py)."""

    def __init__(self, backbone: VisionTransformer) -> None:
        """Keep the backbone."""
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 D), the CLS token first; not normalized."""
        tokens = self.backbone.get_intermediate_layers(images, n=1)[0]
        return torch.cat([tokens[:, 0], compute_gem(tokens[:, 1:])], dim=1)


def compute_gem(tokens: Tensor, exponent: float = GEM_EXPONENT) -> Tensor:
    """Generalised mean over tokens, mean(x^p)^(1/p) of the positive part: (B, N, D) -> (B, D)."""
    return tokens.clamp(min=GEM_LEAST).pow(exponent).mean(dim=1).pow(1 / exponent)


class MultiScale(nn.Module):
    """Mean of a backbone's features over three sizes of the image; its length says nothing, so normalize each row."""

    def __init__(self, backbone: nn.Module) -> None:
        """Keep the backbone, (B, C, H, W) -> (B, D) for any H and W."""
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
    """The CLS tokens of the last blocks, joined (paper, section 4.1; eval_linear.py in the original)."""

    def __init__(self, backbone: VisionTransformer, *, blocks: int, average_patches: bool) -> None:
        """Wrap a backbone.

        Args:
            backbone: (B, C, H, W) -> tokens; each block's are normalized by the network's last norm.
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
    """The tokens of chosen blocks, each normalized by the network's last norm."""

    def __init__(
        self, backbone: VisionTransformer, *, layers: tuple[int, ...], patches: bool
    ) -> None:
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
        return torch.stack(
            [layers[place][:, : None if self.patches else 1] for place in self.places], dim=1
        )
