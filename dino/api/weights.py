"""Backbones by name and by file."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from torch import nn

from dino.config import build
from dino.data.photometric import build_normalization
from dino.errors import WeightsError
from dino.models.registry import VITS
from dino.runtime.config import FrozenConfig
from dino.weights.load import load_backbone


def list_models() -> list[str]:
    """Names of the vision transformers that `arch` takes; any torchvision classifier, xcit_* and timm:NAME work too."""
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
        A module in eval mode on the CPU: (B, C, H, W) float32, normalized -> (B, D). It has `arch`, `patch_size`
        (pixels; of no meaning but for a ViT), `embed_dim` (D), `image_size` (side in pixels of the views it was trained
        on), `in_chans` (C) and `normalization` (a callable that takes (B, C, H, W) uint8, or floats from 0 to 255, to
        what the module wants; `mean` and `std` are its attributes).

    Raises:
        WeightsError: No such name, or a tensor of the backbone is not in the file with its shape; nothing is random.
        CheckpointError: The file is missing or damaged.
        OptionError: `arch` is unknown, or a value of another type.
    """
    word = os.fspath(weights)
    if not word:
        raise WeightsError(
            "the name of the weights is empty",
            remedy="give a file, a folder, hub:NAME or timm:NAME",
        )
    given = {
        "pretrained_weights": word,
        "arch": arch,
        "patch_size": patch_size,
        "checkpoint_key": checkpoint_key,
    }
    config = build(FrozenConfig, given)
    with torch.random.fork_rng(
        devices=[]
    ):  # a network is drawn before it is filled, and random numbers are the host's
        trained = load_backbone(config.backbone, config.weights)
    module: Any = trained.module
    module.arch, module.patch_size, module.image_size = (
        trained.arch,
        trained.patch_size,
        trained.image_size,
    )
    module.in_chans = trained.in_chans
    module.normalization = build_normalization(trained.in_chans, trained.normalization)
    return cast(nn.Module, module)
