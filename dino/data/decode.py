"""Decoding one file to one array of pixels; every error includes the file's name.

Conversions (see docs/data.md): the EXIF orientation is applied. Palette, CMYK, gray and bilevel
pictures become RGB (or gray, for one channel). Alpha is dropped. 16-bit levels keep their upper
byte.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, features
from torch import Tensor

from dino.errors import DataError

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".ppm",
    ".pnm",
    ".pbm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".npy",
    *([".avif"] if features.check("avif") else []),
)
MODES = {1: "L", 3: "RGB"}
ROTATIONS = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
# EXIF orientations other than pure rotations; unknown values mean upright.
MIRRORED = (2, 4, 5, 7)
SCAN_OF_JPEG, END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Stored(Protocol):
    """An image inside another file; `str` is its name in errors, with a file's extension."""

    def read(self) -> bytes:
        """Its content."""


def is_picture(path: str) -> bool:
    """Whether a path has the extension of an image."""
    return path.lower().endswith(EXTENSIONS)


def read_image(path: str | Path | Stored, channels: int = 3, box: Box | None = None) -> Tensor:
    """Decode an image.

    Args:
        path: A picture, or an `.npy` file of uint8 (H, W, C); or either stored elsewhere.
        channels: C: 1 or 3 for pictures, any number for `.npy` files.
        box: The region of a picture to keep, in stored coordinates (before EXIF orientation).

    Returns:
        (C, H, W) uint8, channels last in memory.

    Raises:
        DataError: The file is missing, damaged, not a picture, or has a different number of
            channels; the text names it.
    """
    try:
        pixels = (
            _read_array(path)
            if str(path).lower().endswith(".npy")
            else _read_picture(path, channels, box)
        )
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        raise DataError(f"{path} cannot be decoded: {error}") from error
    if pixels.shape[2] != channels:
        raise DataError(f"{path} has {pixels.shape[2]} channels, but `in_chans` is {channels}")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_size(path: str | Path | Stored, box: Box | None = None) -> tuple[int, int]:
    """(H, W) of the picture that `read_image` would return, read from the file's header.

    Raises:
        DataError: The file is missing or not a picture, or the box is outside it; the text names
            the file.
    """
    try:
        with Image.open(_content(path)) as picture:
            left, top, right, bottom = _clip(box, picture)
            turned = picture.getexif().get(ExifTags.Base.Orientation) in TURNED
    except Exception as error:  # noqa: BLE001 - as above
        raise DataError(f"{path} cannot be decoded: {error}") from error
    return (right - left, bottom - top) if turned else (bottom - top, right - left)


def _clip(box: Box | None, picture: Image.Image) -> Box:
    left, top, right, bottom = box or (0, 0, *picture.size)
    inside = max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ValueError(f"the box {box} has no pixel inside {picture.width} x {picture.height}")
    return inside


def _content(path: str | Path | Stored) -> str | Path | io.BytesIO:
    return path if isinstance(path, str | Path) else io.BytesIO(path.read())


def _read_picture(path: str | Path | Stored, channels: int, box: Box | None) -> np.ndarray:
    if channels not in MODES:
        raise DataError(
            f"{path} is a picture",
            remedy=f"`in_chans` {channels} needs .npy files, pictures give 1 or 3 channels",
        )
    content = Path(path).read_bytes() if isinstance(path, str | Path) else path.read()
    with Image.open(io.BytesIO(content)) as picture:
        if (
            picture.format == "JPEG"
            and picture.mode in ("L", "RGB")
            and channels == 3
            and box is None
        ):
            pixels = _read_jpeg(content, picture.getexif().get(ExifTags.Base.Orientation, 1))
            if pixels is not None:
                return pixels
        upright = ImageOps.exif_transpose(picture.crop(_clip(box, picture)) if box else picture)
        return to_levels(upright, channels)


def to_levels(picture: Image.Image, channels: int) -> np.ndarray:
    """A picture of any mode as (H, W, C) uint8; C is 1 or 3."""
    if picture.mode.startswith("I"):  # 16 bits a level, in either byte order
        picture = Image.fromarray(
            (np.asarray(picture, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)
        )
    pixels = np.array(picture.convert(MODES[channels]))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _read_jpeg(content: bytes, orientation: int) -> np.ndarray | None:
    """As Pillow, in two thirds of the time; None for files that Pillow has to read or reject."""
    complete = content.endswith(END_OF_JPEG) or content.rfind(END_OF_JPEG) > content.rfind(
        SCAN_OF_JPEG
    )
    if not complete or orientation in MIRRORED:  # OpenCV fills missing parts with gray
        return None
    encoded = np.frombuffer(content, dtype=np.uint8)
    try:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return (
        cv2.rotate(pixels, ROTATIONS[orientation])
        if orientation in ROTATIONS and pixels is not None
        else pixels
    )


def _read_array(path: str | Path | Stored) -> np.ndarray:
    pixels: np.ndarray = np.load(_content(path), allow_pickle=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(f"{path} must hold uint8 (H, W, C) (got {pixels.dtype} {pixels.shape})")
    return pixels
