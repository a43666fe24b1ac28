"""Pictures from numbers: color maps, overlays, masks, sheets; each file written whole or not at all.

Shapes: P side of a patch in pixels, h x w patches, H x W = P h x P w pixels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from dino.files import atomic_write

Pixels = NDArray[np.uint8]

VIRIDIS, INFERNO = cv2.COLORMAP_VIRIDIS, cv2.COLORMAP_INFERNO
JPEG_QUALITY = 95  # %
OVERLAY_SHARE = 0.5  # of the map in an overlay, of the color in a mask (the original's alpha)
MASK_COLOR = (
    255,
    0,
    0,
)  # the original's display_instances draws its only mask in the first hue, red
TILE = 192  # pixels, side of one picture of a sheet
SHEET_ROWS = (
    50  # rows of a sheet; more go to another one, so that memory does not grow with the images
)


def color(values: NDArray[np.float32], table: int) -> Pixels:
    """Colors of a map from its least to its greatest value, as matplotlib's `imsave` chooses them.

    Args:
        values: (h, w).
        table: VIRIDIS or INFERNO.

    Returns:
        (h, w, 3) RGB, within 1 level of matplotlib's; a map of one value has the first color all over.
    """
    least, greatest = values.min(), values.max()
    spread = greatest - least
    share = (values - least) / (spread if spread > 0 else 1)
    levels = np.minimum(share * 256, 255).astype(np.uint8)
    colored: Pixels = cv2.applyColorMap(levels, table)[..., ::-1].astype(np.uint8)
    return colored


def upsample_nearest(patches: np.ndarray, patch_size: int) -> np.ndarray:
    """Repeat every patch's value over its pixels: (h, w, ...) -> (H, W, ...)."""
    return patches.repeat(patch_size, axis=0).repeat(patch_size, axis=1)


def to_picture(image: Tensor) -> Pixels:
    """What of an image can be shown, (C, H, W) uint8 -> (H, W, 3): its first three channels, else the first as gray."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return np.ascontiguousarray(shown.permute(1, 2, 0).numpy())


def overlay(picture: Pixels, over: Pixels) -> Pixels:
    """Two (H, W, 3) pictures, one shining through the other."""
    return _mix(picture, over, np.float32(OVERLAY_SHARE))


def draw_mask(picture: Pixels, kept: NDArray[np.bool_]) -> Pixels:
    """Tint the kept part (H, W) of a picture (H, W, 3) and outline it, as the original's display_instances."""
    shrunk = cv2.erode(kept.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=(0,)).astype(
        bool
    )
    share = np.where(kept, np.where(shrunk, OVERLAY_SHARE, 1.0), 0.0).astype(np.float32)
    return _mix(picture, np.array(MASK_COLOR, np.uint8), share[..., None])


def _mix(picture: Pixels, over: Pixels, share: np.float32 | NDArray[np.float32]) -> Pixels:
    mixed: Pixels = (picture * (1 - share) + over * share).astype(np.uint8)
    return mixed


def save_picture(path: Path, pixels: Pixels) -> None:
    """Write (H, W, 3) uint8 as the PNG or JPEG that the name asks for.

    Raises:
        OptionError: The file cannot be written.
    """
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    with atomic_write(path, "") as temporary:
        Image.fromarray(pixels).save(temporary, format=kind, quality=JPEG_QUALITY)


class Sheet:
    """A contact sheet: a row an image, first the image, then each map, brightest where it attends most."""

    def __init__(self, path: Path) -> None:
        """Collect rows for the PNG `path`; after SHEET_ROWS of them the next is `STEM-2.png`, and so on."""
        self.path, self.rows = path, list[Pixels]()
        self.written: list[Path] = []

    def add(self, picture: Pixels, maps: NDArray[np.float32]) -> None:
        """Add the row of a picture (H, W, 3) and its maps (M, h, w).

        Raises:
            OptionError: A full sheet cannot be written.
        """
        patch_size = picture.shape[0] // maps.shape[1]
        bright = maps / maps.max(axis=(1, 2), keepdims=True).clip(min=1e-12)
        tiles = [
            picture,
            *(
                (picture * upsample_nearest(shine, patch_size)[..., None]).astype(np.uint8)
                for shine in bright
            ),
        ]
        self.rows.append(np.concatenate([_fit_tile(tile) for tile in tiles], axis=1))
        if len(self.rows) == SHEET_ROWS:
            self._write()

    def close(self) -> list[Path]:
        """Write what is left; gives the sheets.

        Raises:
            OptionError: It cannot be written.
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
    """Scale a picture into a square tile; the box filter leaves the edges of a patch sharp where it enlarges."""
    return np.asarray(
        ImageOps.pad(Image.fromarray(picture), (TILE, TILE), method=Image.Resampling.BOX)
    )
