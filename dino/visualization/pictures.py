"""Resizing, drawing and atomically writing pictures: color maps, overlays, masks, contact sheets.

Shapes: P side of a patch in pixels, h x w patches, H x W = P h x P w pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from dino.data.crops import scale_shorter
from dino.data.label_maps import mark_png
from dino.files import MARK, atomic_write

Pixels = NDArray[np.uint8]

VIRIDIS, INFERNO = cv2.COLORMAP_VIRIDIS, cv2.COLORMAP_INFERNO
JPEG_QUALITY = 95  # %
OVERLAY_SHARE = 0.5  # weight of the map in an overlay, of the color in a mask (original's alpha)
# The original's display_instances draws its only mask in the first hue, red.
MASK_COLOR = (255, 0, 0)
TILE = 192  # pixels, side of one picture in a sheet
SHEET_ROWS = 50  # rows per sheet; further rows start another sheet, which bounds memory


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


def overlay(picture: Pixels, over: Pixels) -> Pixels:
    """Blend two (H, W, 3) pictures."""
    return _mix(picture, over, np.float32(OVERLAY_SHARE))


def draw_mask(picture: Pixels, kept: NDArray[np.bool_]) -> Pixels:
    """Tint and outline the kept part (H, W) of a picture (H, W, 3), as display_instances does."""
    ones = np.ones((3, 3), np.uint8)
    shrunk = cv2.erode(kept.astype(np.uint8), ones, borderValue=(0,)).astype(bool)
    share = np.where(kept, np.where(shrunk, OVERLAY_SHARE, 1.0), 0.0).astype(np.float32)
    return _mix(picture, np.array(MASK_COLOR, np.uint8), share[..., None])


def _mix(picture: Pixels, over: Pixels, share: np.float32 | NDArray[np.float32]) -> Pixels:
    mixed: Pixels = (picture * (1 - share) + over * share).astype(np.uint8)
    return mixed


def save_picture(path: Path, pixels: Pixels) -> None:
    """Write (H, W, 3) uint8 as PNG or JPEG, depending on the extension, with our mark in it.

    Raises:
        OptionError: The file cannot be written.
    """
    options: dict[str, Any] = (
        {"format": "JPEG", "quality": JPEG_QUALITY, "comment": MARK}
        if path.suffix == ".jpg"
        else {"format": "PNG", "pnginfo": mark_png()}
    )
    with atomic_write(path, "") as temporary:
        Image.fromarray(pixels).save(temporary, **options)


class Sheet:
    """A contact sheet with one row per image: the image, then each map as its brightness."""

    def __init__(self, path: Path) -> None:
        """Collect rows for the PNG `path`; further sheets are named `STEM-2.png` and so on."""
        self.path, self.rows = path, list[Pixels]()
        self.written: list[Path] = []

    def add(self, picture: Pixels, maps: NDArray[np.float32]) -> None:
        """Add the row of a picture (H, W, 3) and its maps (M, h, w).

        Raises:
            OptionError: A full sheet cannot be written.
        """
        patch_size = picture.shape[0] // maps.shape[1]
        bright = maps / maps.max(axis=(1, 2), keepdims=True).clip(min=1e-12)
        tiles = [picture]
        for brightness in bright:
            scale = upsample_nearest(brightness, patch_size)[..., None]
            tiles.append((picture * scale).astype(np.uint8))
        self.rows.append(np.concatenate([_fit_tile(tile) for tile in tiles], axis=1))
        if len(self.rows) == SHEET_ROWS:
            self._write()

    def close(self) -> list[Path]:
        """Write the remaining rows and return the paths of all sheets.

        Raises:
            OptionError: The sheet cannot be written.
        """
        if self.rows:
            self._write()
        return self.written

    def _write(self) -> None:
        number = len(self.written) + 1
        path = self.path if number == 1 else self.path.with_stem(f"{self.path.stem}-{number}")
        save_picture(path, np.concatenate(self.rows))
        self.written.append(path)
        self.rows = []


def _fit_tile(picture: Pixels) -> Pixels:
    """Fit a picture into a square tile; the box filter keeps patch edges sharp when enlarging."""
    return np.asarray(
        ImageOps.pad(Image.fromarray(picture), (TILE, TILE), method=Image.Resampling.BOX)
    )
