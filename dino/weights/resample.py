"""Weights of one input for a network of another: other channels, patches or image sizes.

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
    """Fit the first layer and the position embedding of a file to a network; each change is logged.

    Args:
        tensors: The file's.
        wanted: The network's own, for their shapes.
        origin: The file, for messages.
        new_channels: Somebody asked for the network's channels, so the file's may be changed.
        new_patches: The same of the size of its patches.

    Returns:
        The tensors, those two adapted; what differs in any other way is left to whoever loads them.

    Raises:
        WeightsError: The file has other channels or patches, and nobody asked for that.
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
    """The first convolution (D, C, P, P) for another C or P."""
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
            f"{origin} has `{name}` {there}, this network {here}: give `{name}` {there}, or `{name}` {here} to adapt it"
        )


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """First convolution (D, C, P, P) -> (D, channels, P, P), as timm's adapt_input_conv.

    One channel: the sum over C, so that a gray image gives what its color copy gave. Else channels repeat in their
    order and are scaled by C / channels, so that the sum over an image of equal channels stays about what it was.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    there = weight.shape[1]
    return weight[:, torch.arange(channels) % there] * (there / channels)


def resample_position(embedding: Tensor, tokens: int) -> Tensor:
    """Bicubic position embedding of another square grid: (1, 1 + n, D) -> (1, tokens, D).

    Raises:
        WeightsError: The stored grid is not square.
    """
    if embedding.shape[1] == tokens:
        return embedding
    old, new = math.isqrt(embedding.shape[1] - 1), math.isqrt(tokens - 1)
    if old * old != embedding.shape[1] - 1:
        raise WeightsError(
            f"the position embedding has {embedding.shape[1] - 1} patches, which is no square"
        )
    grid = torch.unflatten(embedding[:, 1:], 1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic")
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
