"""Patch embedding: from an image to one token per patch.

Shapes: B images, C channels, H W pixels, N - 1 patches, D width.
"""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Splits an image into patches and projects each to width D."""

    def __init__(self, *, patch_size: int, in_chans: int, embed_dim: int) -> None:
        """Create the projection, a convolution with the patch size as its stride."""
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N - 1, D); incomplete patches are dropped."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """Embeds patches with one small convolution per halving of the side, instead of one large one.

    After Xiao et al., 2021 (Early Convolutions Help Transformers See Better), with group norm in
    place of batch norm, so that images stay independent. A small network then needs far fewer
    images.
    """

    def __init__(self, *, patch_size: int, in_chans: int, embed_dim: int) -> None:
        """Create the convolutions, doubling the width; odd factors are left to the projection."""
        super().__init__()
        halvings = (patch_size & -patch_size).bit_length() - 1
        widths = [in_chans, *(embed_dim >> left for left in reversed(range(halvings)))]
        self.patch_size = patch_size
        self.convs = nn.Sequential(
            *(_halve(*pair) for pair in zip(widths, widths[1:], strict=False))
        )
        odd = patch_size >> halvings
        self.proj = nn.Conv2d(widths[-1], embed_dim, kernel_size=odd, stride=odd)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N - 1, D); incomplete patches are dropped."""
        height, width = (side - side % self.patch_size for side in images.shape[-2:])
        patches: Tensor = self.proj(self.convs(images[..., :height, :width]))
        return patches.flatten(2).transpose(1, 2)


def _halve(inputs: int, outputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(1, outputs), nn.ReLU())
