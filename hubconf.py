"""The published backbones under the original's names, for torch.hub.

Example: `torch.hub.load(PATH, "dino_vits16", source="local")`. Each function takes `pretrained`
(True: the published weights, from the folder DINO_WEIGHTS_DIR or downloaded) and the settings
`in_chans`, `img_size` and `drop_path_rate`. It returns a module in training mode:
(B, C, H, W) -> features (B, D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dino.weights.hub import load_published as _load_published

if TYPE_CHECKING:
    from torch import nn

# XCiT also needs timm, and ResNet-50 needs torchvision; both are imported only when built.
dependencies = ["numpy", "torch", "yaml"]


def dino_vits16(pretrained: bool = True, **settings: float) -> nn.Module:
    """ViT-S/16: 74.5 % by k-NN and 77.0 % by a linear layer on ImageNet."""
    return _load_published("dino_vits16", pretrained=pretrained, **settings)


def dino_vits8(pretrained: bool = True, **settings: float) -> nn.Module:
    """ViT-S/8: 78.3 % by k-NN and 79.7 % by a linear layer on ImageNet."""
    return _load_published("dino_vits8", pretrained=pretrained, **settings)


def dino_vitb16(pretrained: bool = True, **settings: float) -> nn.Module:
    """ViT-B/16: 76.1 % by k-NN and 78.2 % by a linear layer on ImageNet."""
    return _load_published("dino_vitb16", pretrained=pretrained, **settings)


def dino_vitb8(pretrained: bool = True, **settings: float) -> nn.Module:
    """ViT-B/8: 77.4 % by k-NN and 80.1 % by a linear layer on ImageNet."""
    return _load_published("dino_vitb8", pretrained=pretrained, **settings)


def dino_resnet50(pretrained: bool = True, **settings: float) -> nn.Module:
    """ResNet-50: 67.5 % by k-NN and 75.3 % by a linear layer on ImageNet."""
    return _load_published("dino_resnet50", pretrained=pretrained, **settings)


def dino_xcit_small_12_p16(pretrained: bool = True, **settings: float) -> nn.Module:
    """XCiT-S12/16."""
    return _load_published("dino_xcit_small_12_p16", pretrained=pretrained, **settings)


def dino_xcit_small_12_p8(pretrained: bool = True, **settings: float) -> nn.Module:
    """XCiT-S12/8."""
    return _load_published("dino_xcit_small_12_p8", pretrained=pretrained, **settings)


def dino_xcit_medium_24_p16(pretrained: bool = True, **settings: float) -> nn.Module:
    """XCiT-M24/16."""
    return _load_published("dino_xcit_medium_24_p16", pretrained=pretrained, **settings)


def dino_xcit_medium_24_p8(pretrained: bool = True, **settings: float) -> nn.Module:
    """XCiT-M24/8."""
    return _load_published("dino_xcit_medium_24_p8", pretrained=pretrained, **settings)


dino_deits16, dino_deits8 = dino_vits16, dino_vits8  # older names of the same networks
