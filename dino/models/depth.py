"""Stochastic depth (Huang et al., 2016): drops residual branches for whole images in training.

Letters: L blocks of two branches each, B images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def draw_depth(rates: Sequence[float], images: int, key: Sequence[int]) -> np.ndarray:
    """Factors for both branches of each block: 0, or the value that preserves the expectation.

    Args:
        rates: Drop probability of each of L blocks, 0 to 1.
        images: Number of images.
        key: Integers >= 0; equal keys yield equal factors.

    Returns:
        (2 L, images) float32; rows are ordered by block, attention before perceptron.
    """
    dropped = np.repeat(np.asarray(rates, dtype=np.float32), 2)[:, None]
    kept = np.random.default_rng(key).random((len(dropped), images), dtype=np.float32) >= dropped
    factors: np.ndarray = kept / np.maximum(np.float32(1.0) - dropped, np.float32(1e-9))
    return factors


class DropPath(nn.Module):
    """The factors of one block.

    A training run passes the factors in, so that they can be reproduced; otherwise they are drawn.
    """

    def __init__(self, rate: float) -> None:
        """Store the drop probability, 0 to 1."""
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, given: Tensor | None = None) -> Tensor | None:
        """Factor per row of a branch, (B, 1, 1) or (T, 1) as `branch` has dimensions.

        None stands for 1 everywhere. `given` has one factor per row; without it, rows are images.
        """
        if self.rate == 0.0 or not self.training:
            return None
        factors = self.draw(branch.shape[0], branch.device) if given is None else given
        return factors.reshape(-1, *(1,) * (branch.dim() - 1))

    def draw(self, images: int, device: torch.device) -> Tensor:
        """Draw (B,) float32 factors from torch's generator; without it if the rate is 0."""
        if self.rate == 0.0:
            return torch.ones(images, device=device)
        keep = torch.rand(images, device=device) >= self.rate
        return keep.to(torch.float32) / max(1.0 - self.rate, 1e-9)


def scale_branch(branch: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply (B, N, D) by (B, 1, 1), or (T, D) by (T, 1), in the branch's dtype."""
    return branch if factor is None else branch * factor.to(branch.dtype)
