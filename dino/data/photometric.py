"""Photometric augmentation of whole batches on the device.

Shapes are fixed, nothing is read back to the host, and probabilities are masks. The sequence is
that of the original's Pillow transforms (DataAugmentationDINO): flip, color jitter, gray, blur,
solarize, normalize. The parameters of each image are drawn with its crops (`data/crops`). Pixels
are floats in [0, 255] until they are normalized. Shapes: B images, C channels, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.constants import keep_constant, to_constant

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L
# Floats of the views that a CPU augments at a time: one view of 224 pixels, five of 96.
CACHED_NUMBERS = 160_000
# Relative to the center weight. Smaller weights become 0: denormals slow a CPU down a hundredfold.
BLUR_LEAST = 1e-9
BLUR_STRIP = 32  # rows blurred by one matrix
BLUR_REACH = 6  # pixels; the reach of Pillow's blur at the largest radius, 2

# Columns of a view's parameter row. ORDER holds the positions (0 to 3) of brightness, contrast,
# saturation and hue.
FLIP, JITTER, GRAY, BLUR, SOLARIZE = range(5)
FLAGS = slice(5)
FACTORS = slice(5, 9)
ORDER = slice(9, 13)
RADIUS = 13
PARAMETERS = 14
HUE = 3  # index among the four jitter operations


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Mean and standard deviation per channel, of pixels scaled to [0, 1]."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalize (..., C, S, S) in [0, 255], uint8 or float, to float32."""
        levels = tuple(tuple(255.0 * part for part in parts) for parts in (self.mean, self.std))
        shift, scale = to_constant(levels, pixels.device)[..., None, None]
        normalized: Tensor = (pixels.float() - shift).div_(scale)
        return normalized

    def restore(self, normalized: Tensor) -> Tensor:
        """The levels of normalized pixels (..., C, S, S) in host memory, as uint8."""
        mean, std = (torch.tensor(part)[:, None, None] for part in (self.mean, self.std))
        return (255 * (normalized * std + mean)).round().clamp(0, 255).to(torch.uint8)


def build_normalization(
    in_chans: int, stored: Mapping[str, Sequence[float]] | None = None
) -> Normalization:
    """`stored` from a weights file, else ImageNet's constants, averaged unless C is 3."""
    if stored is not None:
        return Normalization(mean=tuple(stored["mean"]), std=tuple(stored["std"]))
    if in_chans == 3:
        return Normalization()
    mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
    return Normalization(mean=(mean,) * in_chans, std=(std,) * in_chans)


def augment(
    pixels: Tensor, parameters: Tensor, normalization: Normalization, *, eager: bool = False
) -> Tensor:
    """Augment one group of views.

    Args:
        pixels: (B, C, S, S) uint8. Saturation, hue and gray need C = 3 and are skipped otherwise.
        parameters: (B, PARAMETERS) float32, one row per image, as drawn by `data/crops`.
        normalization: Mean and standard deviation.
        eager: For host memory only. Processes parts that fit in the cache and skips operations
            that no image of a part needs. On an accelerator, inspecting the parameters would
            force a synchronization, and compilers reject it.

    Returns:
        (B, C, S, S) float32, normalized.
    """
    if not eager:
        return _augment(pixels, parameters, normalization, eager)
    count = max(1, CACHED_NUMBERS // pixels[:1].numel())
    parts = zip(torch.split(pixels, count), torch.split(parameters, count), strict=True)
    return torch.cat([_augment(*part, normalization, eager) for part in parts])


def _augment(
    pixels: Tensor, parameters: Tensor, normalization: Normalization, eager: bool
) -> Tensor:
    flags = (parameters[:, FLAGS].reshape(-1, 5, 1, 1, 1) > 0.5).float()

    def change(views: Tensor, flag: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
        if eager and not flag.any():
            return views
        # Weights of 0 and 1 select exactly; selecting with a mask takes a CPU four times longer.
        return operation(views) if eager and flag.all() else views.lerp_(operation(views), flag)

    views = change(pixels.contiguous().float(), flags[:, FLIP], lambda views: views.flip(-1))
    factors = torch.where(
        parameters[:, JITTER, None] > 0.5,
        parameters[:, FACTORS],
        to_constant(NEUTRAL, pixels.device),
    )
    views = jitter_color(views, factors, parameters[:, ORDER], eager=eager)
    if views.shape[1] == len(LUMA):
        views = change(views, flags[:, GRAY], lambda views: compute_gray(views).floor_())
    views = change(views, flags[:, BLUR], lambda views: blur(views, parameters[:, RADIUS]))
    return normalization(change(views, flags[:, SOLARIZE], solarize))


NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # factors that change nothing


def jitter_color(pixels: Tensor, factors: Tensor, order: Tensor, *, eager: bool = False) -> Tensor:
    """Apply brightness, contrast, saturation and hue in each image's own order.

    Three of the four are blends, so an image goes through at most three before hue and three after
    it. A blend that is not due has factor 1 and changes nothing.

    Args:
        pixels: (B, C, S, S) float in [0, 255]; saturation and hue change nothing unless C is 3.
        factors: (B, 4): blend factors (1 changes nothing) and the hue shift in turns, -0.5 to 0.5.
        order: (B, 4): the position, 0 to 3, at which each operation is due.
        eager: See `augment`.

    Returns:
        (B, C, S, S) float in [0, 255].
    """
    before = order[:, :HUE] < order[:, HUE:]
    # Positions 0 to 2 among the three blends.
    turn = order[:, :HUE] - (~before).float()
    positions = to_constant((0.0, 1.0, 2.0), pixels.device)[:, None]
    due = (turn[:, None] == positions).float()  # (B, 3, 3), one 1 per row
    blends = factors[:, :HUE]
    if pixels.shape[1] != len(LUMA):
        return _blend_in_order(pixels, blends, due, eager)
    pixels = _blend_in_order(pixels, torch.where(before, blends, 1.0), due, eager)
    if not eager or factors[:, HUE].any():
        pixels = shift_hue(pixels, factors[:, HUE])
    return _blend_in_order(pixels, torch.where(before, 1.0, blends), due, eager)


def _blend_in_order(pixels: Tensor, factors: Tensor, due: Tensor, eager: bool) -> Tensor:
    shares = 1.0 - (due * factors[:, None]).sum(dim=2)
    for position in range(HUE):
        share = shares[:, position].reshape(-1, 1, 1, 1)
        if eager and not share.any():
            continue
        luma = compute_gray(pixels)
        mean = (luma.round().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
        _, contrast, saturation = due[:, position].reshape(-1, HUE, 1, 1, 1).unbind(dim=1)
        gray = luma if pixels.shape[1] == len(LUMA) else pixels
        blend_(pixels, torch.addcmul(contrast * mean, saturation, gray), share)
    return pixels


def blend_(pixels: Tensor, reference: Tensor, share: Tensor) -> Tensor:
    """Pillow's blend with a reference, rounded down to integer levels, in place.

    Args:
        pixels: (B, C, S, S) float, integer levels in [0, 255].
        reference: Black (brightness), mean luma (contrast) or luma (saturation); broadcastable to
            `pixels`.
        share: (B, 1, 1, 1), 1 minus Pillow's factor; 0 keeps `pixels`, 1 yields the reference.
    """
    return pixels.lerp_(reference, share).clamp_(0.0, 255.0).floor_()


def compute_gray(pixels: Tensor) -> Tensor:
    """Luma of (B, 3, S, S) as (B, 1, S, S); the mean over channels unless C is 3."""
    if pixels.shape[1] != len(LUMA):
        return pixels.mean(dim=1, keepdim=True)
    red, green, blue = torch.split(pixels, 1, dim=1)
    gray: Tensor = (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return gray


def shift_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of each image, keeping value and chroma.

    For value v, chroma c and hue h in sixths, channel n in (5, 3, 1) of the result is
    v - c max(0, min(k, 4 - k, 1)) with k = (n + h) mod 6 (Smith, 1978, in branch-free form).
    For h in [0, 6), that is v + c - c min(2, max(1, abs(abs(h - m) - 3))) with m in (3, 5, 1).
    The hue's distance from red is (c - r + g + b - min) / c, 0 to 3, towards green if g >= b and
    towards blue otherwise.

    Args:
        pixels: (B, 3, S, S) float, integer levels in [0, 255].
        turns: (B,) shift in turns; 0 returns `pixels` unchanged.
    """
    value, least = pixels.amax(dim=1, keepdim=True), pixels.amin(dim=1, keepdim=True)
    chroma = value - least
    red, green, blue = torch.split(pixels, 1, dim=1)
    distance = (chroma - red + green + blue - least) / chroma.clamp(min=1.0)
    sixths = torch.copysign(distance, green - blue).add_(6.0 * turns.reshape(-1, 1, 1, 1))
    sixths -= 6.0 * (sixths / 6.0).floor_()
    middles = to_constant(HUE_MIDDLES, pixels.device).reshape(3, 1, 1)
    bend = (sixths - middles).abs_().sub_(3.0).abs_().clamp_(1.0, 2.0)
    return torch.addcmul(value + chroma, chroma, bend, value=-1.0).round_()


HUE_MIDDLES = (3.0, 5.0, 1.0)  # sixths of a turn, at which red, green and blue are lowest


def blur(pixels: Tensor, radius: Tensor) -> Tensor:
    """Gaussian blur of each image with its own radius (standard deviation); edges are repeated.

    Uses matrix products, which are faster than grouped convolutions with one kernel per image. They
    run over strips of BLUR_STRIP rows or columns, because a kernel reaches only one strip and its
    margins.

    Args:
        pixels: (B, C, S, S) float.
        radius: (B,) in pixels, above 0 and at most 2.
    """
    offsets = to_constant(
        tuple(float(tap) for tap in range(-BLUR_REACH, BLUR_REACH + 1)), pixels.device
    )
    weights = F.threshold(
        torch.exp(-0.5 * (offsets / radius.reshape(-1, 1)).square()), BLUR_LEAST, 0.0
    )
    weights = weights / weights.sum(dim=1, keepdim=True)
    side = pixels.shape[-1]
    strip = min(side, BLUR_STRIP)
    reach, after = strip + 2 * BLUR_REACH, BLUR_REACH + -side % strip
    kernels = (weights @ keep_constant(_make_taps, pixels.device, strip)).reshape(-1, strip, reach)
    rows = F.pad(pixels, (0, 0, BLUR_REACH, after), mode="replicate").unfold(2, reach, strip)
    pixels = (kernels[:, None, None] @ rows.transpose(-1, -2)).flatten(2, 3)[:, :, :side]
    columns = F.pad(pixels, (BLUR_REACH, after, 0, 0), mode="replicate").unfold(3, reach, strip)
    blurred = columns.flatten(1, 3) @ kernels.transpose(-1, -2)
    return torch.unflatten(blurred, 1, columns.shape[1:4]).flatten(3)[..., :side]


def _make_taps(strip: int) -> Tensor:
    """(taps, strip (strip + margins)) float32: 1 where a tap of an output row hits an input row."""
    return (
        torch.eye(strip + 2 * BLUR_REACH, device="cpu")
        .unfold(0, strip, 1)
        .transpose(1, 2)
        .flatten(1)
    )


def solarize(pixels: Tensor) -> Tensor:
    """Invert levels >= 127.5 (equivalent to Pillow's 128); `pixels` (B, C, S, S) in [0, 255]."""
    return torch.minimum(pixels, 255.0 - pixels)
