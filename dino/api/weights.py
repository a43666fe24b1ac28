"""Backbones by name and by file."""

from __future__ import annotations

import os
from typing import Any, cast

from torch import nn

from dino.data.photometric import build_normalisation
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.registry import VITS
from dino.models.weights import load_backbone


def list_models() -> list[str]:
    """Names of the vision transformers that `arch` takes; any torchvision classifier and timm's XCiT work as well."""
    return sorted(VITS)


def load(
    weights: str | os.PathLike[str],
    *,
    arch: str | None = None,
    patch_size: int | None = None,
    checkpoint_key: str = "teacher",
) -> nn.Module:
    """Load a trained backbone.

    Args:
        weights: What `--pretrained_weights` takes: a checkpoint or weights file, a Hugging Face folder, "hub:NAME" of
            the published weights, or "timm:NAME".
        arch: Architecture; by default what the file says, else what its tensors tell.
        patch_size: In pixels, the same.
        checkpoint_key: Which network of a checkpoint: teacher or student.

    Returns:
        A module in eval mode on the CPU: (B, C, H, W) float32, normalized -> (B, D). It has `arch`, `patch_size`,
        `image_size` (pixels), `in_chans` and `normalization` (a callable that takes (B, C, H, W) uint8 to what the
        module wants; mean and std are its attributes).

    Raises:
        WeightsError: No such file, or a tensor of the backbone is not in it with its shape.
        CheckpointError: The file is damaged.
    """
    config = WeightsConfig(pretrained_weights=os.fspath(weights), checkpoint_key=checkpoint_key)
    trained = load_backbone(BackboneConfig(arch=arch, patch_size=patch_size), config)
    module: Any = trained.module
    module.arch, module.patch_size, module.image_size = trained.arch, trained.patch_size, trained.image_size
    module.in_chans = trained.in_chans
    module.normalization = build_normalisation(trained.in_chans, trained.normalisation)
    return cast(nn.Module, module)
