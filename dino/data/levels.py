"""The levels of a picture as 8 bits, whatever the file stores.

8 bits stay as they are. Without a pixel range, 16 unsigned bits keep their upper byte, and other
levels (signed, 32 bits, float) must be whole numbers from 0 to 255. With a pixel range (LO, HI),
all but 8 bits are scaled: LO becomes 0 and HI 255, and levels outside are clipped.

A PGM or PPM file states its own maximum, and Pillow scales to it. If that is below 65535, its
levels count as 8 bits.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from dino.errors import OptionError

PixelRange = tuple[float, float]

SAMPLE_FORMAT, SIGNED = 339, 2  # of TIFF: its tag, and what it says of signed integers
# 16 bits a level in color; Pillow keeps the upper byte. The second is the maximum of a PPM file.
WIDE = (";16", " 65535)")


def check_range(pixel_range: PixelRange | None) -> None:
    """Reject a range that does not go up.

    Raises:
        OptionError: The text names both ends.
    """
    if pixel_range is not None and not (
        all(map(math.isfinite, pixel_range)) and pixel_range[0] < pixel_range[1]
    ):
        raise OptionError(
            "`pixel_range` must be LO,HI with LO below HI"
            f" (got {pixel_range[0]:g},{pixel_range[1]:g})",
            value=pixel_range,
        )


def reduce_picture(
    picture: Image.Image, content: bytes = b"", pixel_range: PixelRange | None = None
) -> Image.Image:
    """A picture with at most 8 bits a level.

    Args:
        picture: Any picture.
        content: Its file.
        pixel_range: Levels that become black and white.

    Raises:
        ValueError: Its levels need a range, or hold NaN.
    """
    levels = read_levels(picture, content if pixel_range else b"")
    return picture if levels is None else Image.fromarray(to_bytes(levels, pixel_range))


def read_levels(picture: Image.Image, content: bytes = b"") -> np.ndarray | None:
    """The levels as stored, (H, W) or RGB (H, W, 3); None for 8 unsigned bits.

    Args:
        picture: Any picture.
        content: Its file; without it, 16 bits a level in color count as 8 bits.
    """
    stored = _describe_levels(picture)
    if picture.mode == "I":
        return _read_integers(picture, stored)
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if picture.mode == "F":
        return np.asarray(picture)
    if getattr(picture, "tag_v2", {}).get(SAMPLE_FORMAT, (0,))[0] == SIGNED:
        return np.asarray(picture).view(np.int8)
    return _read_color(content) if content and is_deep(picture) else None


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture has more than 8 bits a level that are whole numbers."""
    return picture.mode.startswith("I") or any(word in _describe_levels(picture) for word in WIDE)


def _describe_levels(picture: Image.Image) -> str:
    """Pillow's name of the format of the levels in the file; empty if there is no file."""
    tile = getattr(picture, "tile", None)
    return str(tile[0].args) if tile else ""


def to_bytes(levels: np.ndarray, pixel_range: PixelRange | None) -> np.ndarray:
    """Levels of any type as uint8, same shape.

    Raises:
        ValueError: They need a range, or hold NaN.
    """
    if levels.dtype == np.uint8:
        return levels
    if pixel_range is not None:
        return _scale(levels, *pixel_range)
    if levels.dtype == np.uint16:
        return (levels >> 8).astype(np.uint8)
    low, high = levels.min(), levels.max()
    if low >= 0 and high <= 255 and np.array_equal(levels, np.rint(levels)):
        return levels.astype(np.uint8)
    raise ValueError(
        f"its levels are {levels.dtype}, from {low:g} to {high:g};"
        " `pixel_range` LO,HI says which of them are black and white"
    )


def _scale(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = levels.astype(np.float64)
    if np.isnan(scaled).any():
        raise ValueError("its levels hold NaN")
    scaled -= low
    scaled *= 255 / (high - low)
    scaled = np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled)
    return scaled.astype(np.uint8)


def _read_integers(picture: Image.Image, stored: str) -> np.ndarray:
    """The levels of Pillow's 32-bit pictures, which may be fewer or unsigned bits in the file."""
    levels = np.asarray(picture)
    if picture.format in ("PNG", "PPM"):
        whole = levels.astype(np.uint16)
        return whole if ";16" in stored or picture.format == "PNG" else to_bytes(whole, None)
    return levels.view(np.uint32) if ";32" in stored and "S" not in stored else levels


def _read_color(content: bytes) -> np.ndarray:
    """(H, W, 3) uint16, without alpha.

    Raises:
        ValueError: OpenCV cannot read it (CMYK).
    """
    levels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 3 or levels.shape[2] < 3:
        raise ValueError("`pixel_range` does not apply to its kind of 16-bit color")
    return levels[:, :, 2::-1]
