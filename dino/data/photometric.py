"""Photometric augmentation of whole batches on the device: fixed shapes, no host reads, probabilities as masks.

The same sequence as the original's Pillow transforms (its DataAugmentationDINO): flip, colour jitter, gray, blur,
solarise, normalise. What happens to which image was drawn with the crops (`data/crops`) and arrives as numbers.
Pixels are floats in [0, 255] until they are normalised. Shapes: B images, C channels, S side.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L
SOLARIZE_THRESHOLD = 128.0
BLUR_REACH = 6  # pixels; Pillow's blur of the largest radius, 2, reaches this far

# Columns of a view's parameter row. ORDER holds the position (0 to 3) of brightness, contrast, saturation and hue.
FLIP, JITTER, GRAY, BLUR, SOLARIZE = range(5)
FACTORS = slice(5, 9)
ORDER = slice(9, 13)
RADIUS = 13
PARAMETERS = 14
HUE = 3  # index among the four jitter operations


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Mean and standard deviation a channel of pixels scaled to [0, 1]."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise (..., C, S, S) in [0, 255], uint8 or float, to float32."""
        levels = tuple(tuple(255.0 * part for part in parts) for parts in (self.mean, self.std))
        shift, scale = place_constant(levels, pixels.device)[..., None, None]
        return (pixels.float() - shift) / scale


@functools.cache
def place_constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers as a float32 tensor on a device, copied there once and not at every step."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def build_normalisation(in_chans: int, stored: Mapping[str, Sequence[float]] | None = None) -> Normalisation:
    """What a weights file says (`stored`), else ImageNet's constants for 3 channels, their average for others."""
    if stored is not None:
        return Normalisation(mean=tuple(stored["mean"]), std=tuple(stored["std"]))
    if in_chans == 3:
        return Normalisation()
    mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
    return Normalisation(mean=(mean,) * in_chans, std=(std,) * in_chans)


def augment(pixels: Tensor, parameters: Tensor, normalisation: Normalisation) -> Tensor:
    """The whole chain for one group of views.

    Args:
        pixels: (B, C, S, S) uint8. Saturation, hue and gray need C = 3 and are left out otherwise.
        parameters: (B, PARAMETERS) float32, one row an image, as `data/crops` draws them.
        normalisation: Mean and standard deviation.

    Returns:
        (B, C, S, S) float32, normalised.
    """
    views = pixels.float()
    flags = parameters[:, :5].reshape(-1, 5, 1, 1, 1) > 0.5
    views = torch.where(flags[:, FLIP], views.flip(-1), views)
    factors = torch.where(flags[:, JITTER].flatten(1), parameters[:, FACTORS], place_constant(NEUTRAL, pixels.device))
    views = jitter_colour(views, factors, parameters[:, ORDER])
    if views.shape[1] == len(LUMA):
        views = torch.where(flags[:, GRAY], compute_gray(views).floor().expand_as(views), views)
    views = torch.where(flags[:, BLUR], blur(views, parameters[:, RADIUS]), views)
    views = torch.where(flags[:, SOLARIZE], solarize(views), views)
    return normalisation(views)


NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # factors that change nothing


def jitter_colour(pixels: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, each image in its own order.

    Three of the four are blends, so an image goes through at most three of them before its turn of hue and three
    after; a blend that is not due has factor 1 and changes nothing.

    Args:
        pixels: (B, C, S, S) float in [0, 255]; with C other than 3 saturation and hue change nothing.
        factors: (B, 4): blend factors (1 changes nothing) and the hue shift in turns, -0.5 to 0.5.
        order: (B, 4): the position, 0 to 3, at which each operation is due.

    Returns:
        (B, C, S, S) float in [0, 255].
    """
    if pixels.shape[1] != len(LUMA):
        return _blend_in_order(pixels, factors[:, :HUE], order)
    before = order[:, :HUE] < order[:, HUE:]
    pixels = _blend_in_order(pixels, torch.where(before, factors[:, :HUE], 1.0), order)
    pixels = shift_hue(pixels, factors[:, HUE])
    return _blend_in_order(pixels, torch.where(before, 1.0, factors[:, :HUE]), order)


def _blend_in_order(pixels: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    rank = (order[:, :HUE] > order[:, HUE:]).float()
    turn = order[:, :HUE] - rank  # positions 0 to 2 among the three blends
    for position in range(HUE):
        due = turn == position  # (B, 3), one true a row
        factor = torch.where(due, factors, 0.0).sum(dim=1).reshape(-1, 1, 1, 1)
        luma = compute_gray(pixels)
        mean = (luma.round().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
        _, contrast, saturation = due.reshape(-1, HUE, 1, 1, 1).float().unbind(dim=1)
        gray = luma if pixels.shape[1] == len(LUMA) else pixels
        pixels = blend(pixels, contrast * mean + saturation * gray, factor)
    return pixels


def blend(pixels: Tensor, reference: Tensor, factor: Tensor) -> Tensor:
    """Pillow's blend with black (brightness), mean luma (contrast) or luma (saturation), cut to whole levels.

    Args:
        pixels: (B, C, S, S) float in [0, 255].
        reference: Broadcastable to `pixels`.
        factor: (B, 1, 1, 1); 1 gives `pixels`, 0 the reference.
    """
    mixed = reference + factor * (pixels - reference)
    return torch.where(factor == 1.0, pixels, mixed.clamp(0.0, 255.0).floor())


def compute_gray(pixels: Tensor) -> Tensor:
    """Luma of (B, 3, S, S) as (B, 1, S, S); for any other number of channels their mean."""
    if pixels.shape[1] != len(LUMA):
        return pixels.mean(dim=1, keepdim=True)
    red, green, blue = pixels.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def shift_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of each image and leave its value and chroma.

    A colour is value v and chroma c at a hue; channel n in (5, 3, 1) of the result is
    v - c max(0, min(k, 4 - k, 1)) with k = (n + 6 hue) mod 6 (Smith, 1978, in its branch-free form).

    Args:
        pixels: (B, 3, S, S) float in [0, 255].
        turns: (B,) shift in turns; 0 gives `pixels` back.
    """
    value, largest = pixels.max(dim=1, keepdim=True)
    chroma = value - pixels.amin(dim=1, keepdim=True)
    red, green, blue = (pixels / chroma.clamp(min=1e-6)).split(1, dim=1)
    sixths = torch.where(largest == 0, green - blue, torch.where(largest == 1, blue - red + 2.0, red - green + 4.0))
    sixths = sixths + 6.0 * turns.reshape(-1, 1, 1, 1)
    k = torch.cat([sixths + 5.0, sixths + 3.0, sixths + 1.0], dim=1).remainder(6.0)
    shifted = value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
    return torch.where(turns.reshape(-1, 1, 1, 1) == 0.0, pixels, shifted.round())


def blur(pixels: Tensor, radius: Tensor) -> Tensor:
    """Gaussian blur of each image with its own radius (standard deviation), edges repeated.

    Args:
        pixels: (B, C, S, S) float.
        radius: (B,) in pixels, above 0 and at most 2.
    """
    offsets = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=pixels.device, dtype=pixels.dtype)
    weights = torch.exp(-0.5 * (offsets / radius.reshape(-1, 1)).square())
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(pixels.shape[1], dim=0)
    planes = pixels.flatten(0, 1).unsqueeze(0)  # (1, B C, S, S): one group a plane
    for shape, padding in (
        ((-1, 1, 1, offsets.numel()), (BLUR_REACH, BLUR_REACH, 0, 0)),
        ((-1, 1, offsets.numel(), 1), (0, 0, BLUR_REACH, BLUR_REACH)),
    ):
        padded = F.pad(planes, padding, mode="replicate")
        planes = F.conv2d(padded, weights.reshape(shape), groups=weights.shape[0])
    return planes.reshape(pixels.shape)


def solarize(pixels: Tensor) -> Tensor:
    """Invert all levels from the threshold up; `pixels` (B, C, S, S) in [0, 255]."""
    return torch.where(pixels.round() >= SOLARIZE_THRESHOLD, 255.0 - pixels, pixels)
