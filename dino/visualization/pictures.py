"""Resizing, drawing and atomically writing pictures: color maps, overlays, masks.

Shapes: P side of a patch in pixels, h x w patches, H x W = P h x P w pixels.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dino.data.crops import scale_shorter
from dino.data.label_maps import mark_png
from dino.files import MARK, atomic_write
from dino.runtime.sinks.base import Jpeg

Pixels = NDArray[np.uint8]

VIRIDIS, INFERNO = cv2.COLORMAP_VIRIDIS, cv2.COLORMAP_INFERNO
JPEG_QUALITY = 95  # %
PNG_LEVEL = 4  # of 9; a third of the time of the default, 6, for 3 % more bytes
RECORD_QUALITY = 85  # %
OVERLAY_SHARE = 0.5  # weight of the map in an overlay, of the color in a mask (original's alpha)
# The original's display_instances draws its only mask in the first hue, red.
MASK_COLOR = (255, 0, 0)


def color(values: NDArray[np.float32], table: int) -> Pixels:
    """Color a map from its minimum to its maximum, as matplotlib's `imsave` does.

    Args:
        values: (h, w).
        table: VIRIDIS or INFERNO.

    Returns:
        (h, w, 3) RGB, within 1 level of matplotlib's; a constant map gets the first color.
    """
    least, greatest = values.min(), values.max()
    spread = greatest - least
    share = (values - least) / (spread if spread > 0 else 1)
    levels = np.minimum(share * 256, 255).astype(np.uint8)
    colored: Pixels = cv2.applyColorMap(levels, table)[..., ::-1].astype(np.uint8)
    return colored


def upsample_nearest(patches: np.ndarray, patch_size: int) -> np.ndarray:
    """Repeat each patch's value over its pixels: (h, w, ...) -> (H, W, ...)."""
    return patches.repeat(patch_size, axis=0).repeat(patch_size, axis=1)


def resize_whole(image: Tensor, size: tuple[int, ...] | None) -> Tensor:
    """Resize an image as torchvision's `Resize` resizes a picture: Pillow's bilinear levels.

    torch's resize is faster, but some levels differ by one, which attention maps show.

    Args:
        image: (C, H, W) uint8; so is the result.
        size: (height, width) stretches the image. A single number is the length of the shorter
            side and keeps the aspect ratio. None returns the image unchanged.
    """
    if size is None:
        return image
    height, width = image.shape[1:]
    scaled = (size[0], size[1]) if len(size) > 1 else scale_shorter(height, width, size[0])
    bands = (Image.fromarray(band) for band in image.numpy())  # any number of channels
    resized = [band.resize(scaled[::-1], Image.Resampling.BILINEAR) for band in bands]
    return torch.from_numpy(np.stack([np.asarray(band) for band in resized]))


def to_picture(image: Tensor) -> Pixels:
    """Show the first three channels, or the first as gray: (C, H, W) uint8 -> (H, W, 3)."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return np.ascontiguousarray(shown.permute(1, 2, 0).numpy())


def upsample_smooth(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Enlarge a map (h, w) by cubic interpolation, never beyond its least and greatest value."""
    enlarged = cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(enlarged, values.min(), values.max()).astype(np.float32)


def draw_heat(picture: Pixels, values: NDArray[np.float32]) -> Pixels:
    """Lay a map (h, w), smooth and in the colors of inferno, over a picture (H, W, 3) in gray."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2)
    heat = color(upsample_smooth(values, *picture.shape[:2]), INFERNO)
    return _mix(gray.astype(np.uint8), heat, np.float32(OVERLAY_SHARE))


def draw_mask(picture: Pixels, kept: NDArray[np.bool_]) -> Pixels:
    """Tint and outline the kept part (H, W) of a picture (H, W, 3), as display_instances does."""
    ones = np.ones((3, 3), np.uint8)
    shrunk = cv2.erode(kept.astype(np.uint8), ones, borderValue=(0,)).astype(bool)
    share = np.where(kept, np.where(shrunk, OVERLAY_SHARE, 1.0), 0.0).astype(np.float32)
    return _mix(picture, np.array(MASK_COLOR, np.uint8), share[..., None])


def _mix(picture: Pixels, over: Pixels, share: np.float32 | NDArray[np.float32]) -> Pixels:
    mixed: Pixels = (picture * (1 - share) + over * share).astype(np.uint8)
    return mixed


def enlarge(patches: Pixels, height: int, width: int) -> Pixels:
    """Enlarge the colors of patches (h, w, 3) to blocks of a picture (height, width, 3)."""
    size = (width, height)
    return np.asarray(Image.fromarray(patches).resize(size, Image.Resampling.NEAREST))


def encode_jpeg(pixels: Pixels) -> Jpeg:
    """Encode (H, W, 3) uint8 small, for records that keep every picture of a run."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=RECORD_QUALITY)
    return Jpeg(file.getvalue(), *pixels.shape[:2])


def save_picture(path: Path, pixels: Pixels) -> None:
    """Write (H, W, 3) uint8 as PNG or JPEG, depending on the extension, with our mark in it.

    Raises:
        OptionError: The file cannot be written.
    """
    options: dict[str, Any] = (
        {"format": "JPEG", "quality": JPEG_QUALITY, "comment": MARK}
        if path.suffix == ".jpg"
        else {"format": "PNG", "pnginfo": mark_png(), "compress_level": PNG_LEVEL}
    )
    with atomic_write(path, "") as temporary:
        Image.fromarray(pixels).save(temporary, **options)
