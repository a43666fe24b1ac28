"""From a backbone to a map of features: one vector a patch of a ViT, one a position of a convnet's last feature map."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from dino.errors import OptionError
from dino.models.vit import VisionTransformer

# Names that torchvision's networks give to the part whose output is the last feature map, width first: swin, ResNet and
# its kin, RegNet, MNASNet, ShuffleNet, GoogLeNet, Inception; all others call it features.
LAST_MAPS = (
    "permute",
    "layer4",
    "trunk_output",
    "layers",
    "conv5",
    "inception5b",
    "Mixed_7c",
    "features",
)


class PatchMap(nn.Module):
    """The last block's normalized patch tokens of a ViT, without CLS (extract_feature of the original)."""

    def __init__(self, network: VisionTransformer) -> None:
        """Wrap a network."""
        super().__init__()
        self.network, self.patch_size = network, network.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, D, H, W), H and W the whole patches that fit.

        Raises:
            OptionError: Not one fits.
        """
        height, width = images.shape[-2:]
        rows = height // self.patch_size
        if not rows or width < self.patch_size:
            raise OptionError(
                f"`patch_size` {self.patch_size}: not one patch fits into {height} x {width} pixels",
                value=self.patch_size,
            )
        patches = self.network.get_intermediate_layers(images)[0][:, 1:]
        return torch.unflatten(patches.transpose(1, 2), 2, (rows, -1))


class LastMap(nn.Module):
    """The last of the feature maps that a network of timm names."""

    def __init__(self, network: Any) -> None:
        """Wrap a network."""
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, D, H, W)."""
        maps: list[Tensor] = self.network.forward_intermediates(
            images, indices=1, intermediates_only=True, norm=True
        )
        return maps[0]


def build_dense(network: nn.Module, arch: str) -> nn.Module:
    """Make a module (B, C, height, width) -> (B, D, H, W) of a backbone; the weights are shared.

    Args:
        network: The backbone.
        arch: Its architecture, for the error.

    Raises:
        OptionError: The architecture has no feature map.
    """
    if isinstance(network, VisionTransformer):
        return PatchMap(network)
    if hasattr(network, "forward_intermediates"):
        return LastMap(network)
    parts = dict(network.named_children())
    last = next((name for name in LAST_MAPS if name in parts), None)
    if last is None:
        raise OptionError(
            f"`arch` {arch} has no map of features",
            value=arch,
            remedy="name a ViT or a convnet (resnet50)",
        )
    return nn.Sequential(*itertools.islice(parts.values(), 1 + list(parts).index(last))).eval()
