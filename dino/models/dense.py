"""Dense feature maps of a backbone: one vector per ViT patch, or per position of a convnet."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from dino.errors import OptionError
from dino.models.vit import VisionTransformer

# Names, in torchvision's networks, of the module that outputs the last feature map. By priority:
# swin, ResNet and related, RegNet, MNASNet, ShuffleNet, GoogLeNet, Inception; others: features.
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
    """Normalized patch tokens of a ViT's last block, no CLS (the original's extract_feature)."""

    def __init__(self, network: VisionTransformer) -> None:
        """Wrap a network."""
        super().__init__()
        self.network, self.patch_size = network, network.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, D, H, W), with H and W the number of whole patches.

        Raises:
            OptionError: The image is smaller than one patch.
        """
        height, width = images.shape[-2:]
        rows = height // self.patch_size
        if not rows or width < self.patch_size:
            raise OptionError(
                f"`patch_size` {self.patch_size} must not exceed the image's"
                f" {height} x {width} pixels",
                value=self.patch_size,
            )
        patches = self.network.get_intermediate_layers(images)[0][:, 1:]
        return torch.unflatten(patches.transpose(1, 2), 2, (rows, -1))


class LastMap(nn.Module):
    """The last feature map of a timm network."""

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
    """Build a module (B, C, height, width) -> (B, D, H, W) that shares a backbone's weights.

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
    children = dict(network.named_children())
    last = next((name for name in LAST_MAPS if name in children), None)
    if last is None:
        raise OptionError(
            f"`arch` {arch} has no feature map",
            value=arch,
            remedy="choose a ViT or a convnet (resnet50)",
        )
    count = 1 + list(children).index(last)
    return nn.Sequential(*itertools.islice(children.values(), count)).eval()
