"""Decoding one file to one array of pixels; every error includes the file's name.

Conversions (see docs/data.md): the EXIF orientation is applied. Palette, CMYK, gray and bilevel
pictures become RGB (or gray, for one channel). Alpha is dropped. `levels` reduces more than 8 bits.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, features
from torch import Tensor

from dino.data import jpeg
from dino.data.levels import PixelRange, is_deep, read_levels, reduce_picture, to_bytes
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
EIGHT_BITS = (".jpg", ".jpeg", ".webp", ".gif", ".npy")  # what these endings promise
# Pillow chooses by content, so a file may be any of these whatever its name, and nothing else. Some
# other decoders start programs (EPS).
DECODERS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF")
MODES = {1: "L", 3: "RGB"}
# EXIF orientation to what makes it upright: whether to swap height and width, then OpenCV's flip.
TURNS: dict[Any, tuple[bool, int | None]] = {
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
UPRIGHT = (False, None)
MOST_BYTES = 2**32  # of a file
STRIP = 2**24  # pixels of a large picture that are converted at a time

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Stored(Protocol):
    """An image inside another file; `str` is its name in errors, with a file's extension."""

    def read(self) -> bytes:
        """Its content."""


def is_picture(path: str) -> bool:
    """Whether a path has the extension of an image."""
    return path.lower().endswith(EXTENSIONS)


def read_image(
    path: str | Path | Stored,
    channels: int = 3,
    box: Box | None = None,
    *,
    pixel_range: PixelRange | None = None,
) -> Tensor:
    """Decode an image.

    Args:
        path: A picture, or an `.npy` file of (H, W, C); or either stored elsewhere.
        channels: C: 1 or 3 for pictures, any number for `.npy` files.
        box: The region of a picture to keep, in stored coordinates (before EXIF orientation).
        pixel_range: Levels that become 0 and 255 where they have more than 8 bits.

    Returns:
        (C, H, W) uint8, channels last in memory.

    Raises:
        DataError: The file is missing, damaged, not a picture, has a different number of channels,
            or its levels need a range; the text names it.
    """
    try:
        pixels = (
            _read_array(path, pixel_range)
            if str(path).lower().endswith(".npy")
            else _read_picture(path, channels, box, pixel_range)
        )
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        raise _undecodable(path, error) from error
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
        with open_picture(_content(path)) as picture:
            left, top, right, bottom = _clip(box, *picture.size)
            turned, _ = _find_turn(picture)
    except Exception as error:  # noqa: BLE001 - as above
        raise _undecodable(path, error) from error
    return (right - left, bottom - top) if turned else (bottom - top, right - left)


def read_highest(path: str | Path | Stored) -> int | None:
    """The highest level of a picture of 16 unsigned bits; None for any other file."""
    if str(path).lower().endswith(EIGHT_BITS):
        return None
    try:
        with open_picture(_content(path)) as picture:
            levels = read_levels(picture, read_file(path)) if is_deep(picture) else None
    except Exception:  # noqa: BLE001 - whoever reads the image reports it
        return None
    return int(levels.max()) if levels is not None and levels.dtype == np.uint16 else None


def open_picture(content: bytes | str | Path, formats: tuple[str, ...] = DECODERS) -> Image.Image:
    """Open a picture of one of the formats, by its content or its path.

    Raises:
        OSError: It is none of them, or cannot be read.
        ValueError: The path is no regular file.
    """
    if isinstance(content, bytes):
        return Image.open(io.BytesIO(content), formats=formats)
    _check_regular(content)
    return Image.open(content, formats=formats)


def read_file(path: str | Path | Stored) -> bytes:
    """The content of an image file, or of an image stored elsewhere.

    Raises:
        OSError: It cannot be read.
        ValueError: It is too large, or no regular file.
    """
    if not isinstance(path, str | Path):
        return path.read()
    _check_regular(path)
    with open(path, "rb") as file:
        return file.read()


def _check_regular(path: str | Path) -> None:
    """Anything else may never end (a pipe, /dev/zero)."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"it has {status.st_size} bytes, more than {MOST_BYTES}")


def _undecodable(path: object, error: Exception) -> DataError:
    short = isinstance(error, MemoryError)
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be decoded: {'memory is short, ' * short}{reason}")


def _clip(box: Box | None, width: int, height: int) -> Box:
    left, top, right, bottom = box or (0, 0, width, height)
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ValueError(f"the box {box} has no pixel inside {width} x {height}")
    return inside


def _content(path: str | Path | Stored) -> str | Path | bytes:
    return path if isinstance(path, str | Path) else path.read()


def _find_turn(picture: Image.Image) -> tuple[bool, int | None]:
    """What makes a picture upright; damaged EXIF data say nothing."""
    try:
        return TURNS.get(picture.getexif().get(ExifTags.Base.Orientation), UPRIGHT)
    except Exception:  # noqa: BLE001 - Pillow raises anything on it
        return UPRIGHT


def _read_picture(
    path: str | Path | Stored, channels: int, box: Box | None, pixel_range: PixelRange | None
) -> np.ndarray:
    if channels not in MODES:
        raise DataError(
            f"{path} is a picture",
            remedy=f"`in_chans` {channels} needs .npy files, pictures give 1 or 3 channels",
        )
    content = read_file(path)
    with open_picture(content) as picture:
        is_jpeg = picture.format in ("JPEG", "MPO")
        if is_jpeg:
            jpeg.check_header(content, *picture.size)
        quick = picture.format == "JPEG" and picture.mode in ("L", "RGB") and channels == 3
        pixels = jpeg.read_jpeg(content) if quick else None
        if pixels is None:
            pixels = to_levels(reduce_picture(picture, content, pixel_range), channels)
        if is_jpeg:
            jpeg.check_data(content, pixels)
        left, top, right, bottom = _clip(box, *picture.size)
        return _turn(pixels[top:bottom, left:right], *_find_turn(picture))


def _turn(pixels: np.ndarray, swap: bool, flip: int | None) -> np.ndarray:
    """(H, W, C) upright, in order in memory."""
    turned = cv2.transpose(pixels) if swap else pixels
    turned = turned if flip is None else cv2.flip(turned, flip)
    return np.ascontiguousarray(turned).reshape(*turned.shape[:2], pixels.shape[2])


def to_levels(picture: Image.Image, channels: int) -> np.ndarray:
    """A picture of at most 8 bits a level as (H, W, C) uint8; C is 1 or 3.

    Large ones are converted in strips: every further copy of them takes hundreds of megabytes.
    """
    width, height = picture.size
    rows = max(1, STRIP // width)
    if height <= rows:
        return np.array(picture.convert(MODES[channels])).reshape(height, width, channels)
    pixels = np.empty((height, width, channels), dtype=np.uint8)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height))).convert(MODES[channels])
        pixels[top : top + rows] = np.asarray(strip).reshape(-1, width, channels)
    return pixels


def _read_array(path: str | Path | Stored, pixel_range: PixelRange | None) -> np.ndarray:
    content = _content(path)
    if isinstance(content, bytes):
        levels: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    else:
        _check_regular(content)
        levels = np.load(content, allow_pickle=False)
    ranged = pixel_range is not None and levels.dtype.kind in "iuf"
    if not (ranged or levels.dtype == np.uint8) or levels.ndim != 3 or 0 in levels.shape:
        raise DataError(
            f"{path} must hold uint8 (H, W, C) (got {levels.dtype} {levels.shape});"
            " `pixel_range` LO,HI scales other levels"
        )
    return to_bytes(levels, pixel_range)
