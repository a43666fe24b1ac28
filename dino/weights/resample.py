"""Adapt weights to a network with other input channels, patches or image sizes.

Letters: D width, C channels, P side of a patch, N tokens, the CLS token among them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.errors import WeightsError
from dino.models.zoo import open_library

logger = logging.getLogger(__name__)

POSITION = "pos_embed"


def adapt_input(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    origin: str,
    *,
    new_channels: bool = False,
    new_patches: bool = False,
) -> dict[str, Tensor]:
    """Fit the first layer and the position embedding of a file to a network. Each change is logged.

    Args:
        tensors: Tensors of the file.
        wanted: Tensors of the network, for their shapes.
        origin: The file, for messages.
        new_channels: The user set `in_chans`, so the number of channels may change.
        new_patches: The user set `patch_size`, so the patch size may change.

    Returns:
        The tensors, with those two adapted. Other differences are checked when they are loaded.

    Raises:
        WeightsError: The channels or patches differ, and the user did not set them.
    """
    adapted = dict(tensors)
    first = next((name for name, tensor in wanted.items() if tensor.ndim == 4), "")
    if first in tensors and tensors[first].ndim == 4 and tensors[first].numel():
        _check_asked(
            "in_chans", tensors[first].shape[1], wanted[first].shape[1], new_channels, origin
        )
        _check_asked(
            "patch_size", tensors[first].shape[-1], wanted[first].shape[-1], new_patches, origin
        )
        adapted[first] = _adapt_first(tensors[first], wanted[first].shape, origin)
    if (
        POSITION in wanted
        and POSITION in tensors
        and tensors[POSITION].ndim == 3
        and tensors[POSITION].shape[1] > 1
    ):
        adapted[POSITION] = resample_position(tensors[POSITION], wanted[POSITION].shape[1])
        if adapted[POSITION].shape != tensors[POSITION].shape:
            counts = tensors[POSITION].shape[1] - 1, wanted[POSITION].shape[1] - 1
            logger.info(
                "%s: position embedding resampled from %d to %d patches, bicubic", origin, *counts
            )
    return adapted


def _adapt_first(weight: Tensor, wanted: torch.Size, origin: str) -> Tensor:
    """Adapt the first convolution (D, C, P, P) to another C or P."""
    channels, patch_size = wanted[1], wanted[-1]
    if weight.shape[1] != channels:
        how = "summed" if channels == 1 else f"repeated, times {weight.shape[1]}/{channels}"
        logger.info(
            "%s: first layer from %d to %d channels, %s", origin, weight.shape[1], channels, how
        )
        weight = adapt_channels(weight, channels)
    if weight.shape[-1] != patch_size:
        logger.info(
            "%s: patches from %d to %d pixels, resampled", origin, weight.shape[-1], patch_size
        )
        layers = open_library("timm", purpose=f"{origin}: resampling of patches").layers
        weight = layers.resample_patch_embed(weight, [patch_size, patch_size])
    return weight


def _check_asked(name: str, there: int, here: int, asked: bool, origin: str) -> None:
    if there != here and not asked:
        raise WeightsError(
            f"{origin} has `{name}` {there}, this network {here}: "
            f"give `{name}` {there}, or `{name}` {here} to adapt it"
        )


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a first convolution (D, C, P, P) to (D, channels, P, P), as in timm's adapt_input_conv.

    One channel is the sum over C, so a gray image has the same output as its color copy. Otherwise
    channels repeat in order, scaled by C / channels, which about preserves the sum over an image
    with equal channels.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    there = weight.shape[1]
    return weight[:, torch.arange(channels) % there] * (there / channels)


def resample_position(embedding: Tensor, tokens: int) -> Tensor:
    """Resample a position embedding to a square grid, bicubic: (1, 1 + n, D) -> (1, tokens, D).

    Raises:
        WeightsError: The stored grid is not square.
    """
    if embedding.shape[1] == tokens:
        return embedding
    old, new = math.isqrt(embedding.shape[1] - 1), math.isqrt(tokens - 1)
    if old * old != embedding.shape[1] - 1:
        raise WeightsError(
            "the position embedding must have a square number of patches "
            f"(got {embedding.shape[1] - 1})"
        )
    grid = torch.unflatten(embedding[:, 1:], 1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic")
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
