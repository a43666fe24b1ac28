"""What a search compares images by: networks made of a backbone, (B, C, H, W) -> (B, D).

Shapes: B images, C channels, H W pixels, N tokens, D width.
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
        """(B, C, H, W) -> (B, 2 D), the CLS token first; not normalised."""
        tokens = self.backbone.get_intermediate_layers(images, n=1)[0]
        return torch.cat([tokens[:, 0], compute_gem(tokens[:, 1:])], dim=1)


def compute_gem(tokens: Tensor, exponent: float = GEM_EXPONENT) -> Tensor:
    """Generalised mean over tokens, mean(x^p)^(1/p) of the positive part: (B, N, D) -> (B, D)."""
    return tokens.clamp(min=GEM_LEAST).pow(exponent).mean(dim=1).pow(1 / exponent)


class MultiScale(nn.Module):
    """Mean of a backbone's features over three sizes of the image; its length says nothing, so normalise each row."""

    def __init__(self, backbone: nn.Module) -> None:
        """Keep the backbone, (B, C, H, W) -> (B, D) for any H and W."""
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        sizes = [images, *(F.interpolate(images, scale_factor=scale, mode="bilinear") for scale in SCALES[1:])]
        return torch.stack([self.backbone(size) for size in sizes]).mean(dim=0)
