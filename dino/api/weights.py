"""Backbones by name and by file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from dino.api.inputs import describe
from dino.config import build
from dino.data.photometric import build_normalization
from dino.errors import WeightsError
from dino.models.registry import VITS
from dino.models.zoo import open_library
from dino.runtime.config import FrozenConfig
from dino.weights.load import load_backbone


def list_models() -> list[str]:
    """List the vision transformers that `arch` accepts.

    `arch` also accepts any torchvision classifier, xcit_* and timm:NAME.
    """
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
        weights: The same values as `--pretrained_weights`: a checkpoint or weights file, a Hugging
            Face folder, "hub:NAME" for the published weights, or "timm:NAME".
        arch: Architecture. The default is read from the file, or inferred from its tensors.
        patch_size: Patch size in pixels. The default is found in the same way.
        checkpoint_key: The network of a checkpoint to load: teacher or student.

    Returns:
        A module in eval mode on the CPU that maps (B, C, H, W) float32, normalized, to (B, D). Its
        attributes are `arch`, `patch_size` (pixels; meaningful for a ViT only), `embed_dim` (D),
        `image_size` (side in pixels of the views it was trained on), `in_chans` (C),
        `pixel_range` (levels that are black and white in images of more than 8 bits, or None) and
        `normalization`: a callable that turns (B, C, H, W) uint8, or floats from 0 to 255, into the
        module's input, with attributes `mean` and `std`.

    Raises:
        WeightsError: The name is unknown, or the file lacks a tensor of the backbone or holds it
            with another shape. No tensor is left at random values.
        CheckpointError: The file is missing or damaged.
        OptionError: `arch` is unknown, or a value has the wrong type.
    """
    word = os.fspath(weights)
    if not word:
        raise WeightsError(
            "the name of the weights is empty",
            remedy="pass a file, a folder, hub:NAME or timm:NAME",
        )
    settings = {
        "pretrained_weights": word,
        "arch": arch,
        "patch_size": patch_size,
        "checkpoint_key": checkpoint_key,
    }
    config = build(FrozenConfig, settings)
    # Building the network draws random weights. The host's random state is preserved.
    with torch.random.fork_rng(devices=[]):
        trained = load_backbone(config.backbone, config.weights)
    module: Any = trained.module
    module.arch = trained.arch
    module.patch_size = trained.patch_size
    module.image_size = trained.image_size
    module.in_chans = trained.in_chans
    module.pixel_range = trained.pixel_range
    module.normalization = build_normalization(trained.in_chans, trained.normalization)
    return cast(nn.Module, module)


def transform(backbone: nn.Module) -> Callable[[Any], Tensor]:
    """Build the transform that `embed` applies to each image, from torchvision's transforms.

    Args:
        backbone: As in `embed`.

    Returns:
        A `torchvision.transforms.v2.Compose` that maps an image (a path, a PIL image, a uint8 array
        (H, W, C) or a uint8 tensor (C, H, W), of any size) to (C, S, S) float32, normalized. S is
        `image_size`. It can be printed, pickled, and passed to a Dataset as its transform.

    Raises:
        OptionError: torchvision is not installed.
    """
    open_library("torchvision", purpose="dino.transform")
    from dino.data.evaluation_transform import ToPixels, build_transform

    trained = describe(backbone)
    return build_transform(
        ToPixels(channels=trained.in_chans, pixel_range=trained.pixel_range),
        trained.image_size,
        build_normalization(trained.in_chans, trained.normalization),
    )
