"""Features of patches as colors: their first three principal components as red, green and blue.

Patches that a backbone finds alike get like colors, across all images. Oquab et al., "DINOv2",
2023, figure 1. Shapes: B images, h x w patches, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dino.visualization.pictures import Pixels

COMPONENTS = 3  # red, green, blue
SPREAD = (0.01, 0.99)  # quantiles that become black and full color: one odd patch dims no picture


def color_patches(features: Tensor) -> Pixels:
    """Color the patches of some images together: (B, h, w, D) floats -> (B, h, w, 3) uint8.

    The most skewed side of each component is bright. So signs depend on neither the solver nor a
    rotation of the features, and equal features get equal colors. What has no spread is gray.
    Draws no random numbers.

    Args:
        features: On any device, finite.
    """
    rows = features.detach().float().cpu().flatten(0, 2)
    scores = find_components(rows, COMPONENTS)
    levels = torch.full((len(rows), COMPONENTS), 0.5)
    levels[:, : scores.shape[1]] = _stretch(scores, least=1e-6 * float(rows.norm()))
    colors: Pixels = (255 * levels).round().to(torch.uint8).numpy()
    return colors.reshape(*features.shape[:3], COMPONENTS)


def find_components(rows: Tensor, count: int) -> Tensor:
    """The first principal components of rows, their most skewed side positive.

    Args:
        rows: (N, D) float32 in host memory.
        count: How many; there are at most N and D.

    Returns:
        (N, count), the longest first.
    """
    left, lengths, _ = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    scores: Tensor = (left * lengths)[:, :count]
    return scores * torch.where(scores.pow(3).sum(dim=0) < 0, -1.0, 1.0)


def _stretch(scores: Tensor, *, least: float) -> Tensor:
    """Stretch each column (N, 3) to 0 to 1; 0.5 where it spreads no further than `least`."""
    low, high = np.quantile(scores.numpy(), SPREAD, axis=0).astype(np.float32)
    bottom, spread = torch.from_numpy(low), torch.from_numpy(high - low)
    stretched = ((scores - bottom) / spread.clamp(min=least or 1)).clamp(0, 1)
    return torch.where(spread > least, stretched, 0.5)
