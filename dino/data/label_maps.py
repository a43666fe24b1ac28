"""Label maps on disk: indexed PNGs, whose pixels are labels and whose palette says in which colors to show them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino.errors import DataError, OptionError

MODES = ("P", "L", "1")  # of Pillow: palette, gray, bilevel; a pixel's value is its label
LABELS = 256
VOID = 255  # of DAVIS: pixels that belong to nothing

# Colors of the driving fork's 27 labels, 26 being none; what is left of the palette is gray.
DRIVING_COLORS = (
    *((220, 20, 60), (255, 0, 0), (165, 42, 42), (0, 0, 142), (0, 0, 142), (0, 60, 100), (0, 0, 230), (119, 11, 32)),
    *((220, 220, 0), (250, 170, 30), (128, 64, 128), (244, 35, 232), (196, 196, 196), (250, 170, 160)),
    *((170, 170, 170), (140, 140, 200), (255, 255, 255), (128, 64, 255), (70, 70, 70), (197, 231, 158)),
    *((190, 153, 153), (255, 255, 128), (107, 142, 35), (64, 170, 64), (70, 130, 180), (78, 99, 171), (0, 0, 0)),
)


def _spread_bits(label: int) -> tuple[int, int, int]:
    """Colour of a label in the palette of PASCAL VOC and DAVIS: its bits, dealt to red, green and blue from the top."""
    red, green, blue = (
        sum((label >> (3 * level + channel) & 1) << (7 - level) for level in range(3)) for channel in range(3)
    )
    return red, green, blue


DAVIS_PALETTE = bytes(level for label in range(LABELS) for level in _spread_bits(label))
DRIVING_PALETTE = bytes(
    level
    for label in range(LABELS)
    for level in (DRIVING_COLORS[label] if label < len(DRIVING_COLORS) else (label,) * 3)
)


class LabelMap(NamedTuple):
    """Labels (H, W) uint8, and the file's palette of 3 bytes a label, or None where it has none."""

    labels: NDArray[np.uint8]
    palette: bytes | None


def read_label_map(path: Path) -> LabelMap:
    """Read an indexed, gray or bilevel picture of at most 8 bits.

    Raises:
        DataError: The file is missing, damaged or no label map; the text names it.
    """
    try:
        with Image.open(path) as picture:
            mode, labels = picture.mode, np.array(picture).astype(np.uint8)
            palette = bytes(picture.getpalette() or ()) or None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files, and all of it means the same
        raise DataError(f"{path} cannot be decoded: {error}") from error
    if mode not in MODES:
        raise DataError(f"{path} is no label map: wants an indexed or gray 8-bit PNG, not one of mode {mode}")
    return LabelMap(labels, palette)


def drop_void(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Void as background (0), where there are objects; 255 alone is an object, as in the masks of DAVIS 2016."""
    return np.where(labels == VOID, np.uint8(0), labels) if ((labels > 0) & (labels < VOID)).any() else labels


def resize_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Nearest labels at another size, height and width, by Pillow's rule."""
    return np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def write_label_map(path: Path, labels: NDArray[np.uint8], palette: bytes) -> None:
    """Write (H, W) labels as an indexed PNG, whole or not at all.

    Raises:
        OptionError: The folder cannot be written to.
    """
    picture = Image.fromarray(labels)
    picture.putpalette(palette)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        picture.save(temporary, format="PNG")
        os.replace(temporary, path)
    except OSError as error:
        raise OptionError(f"`output_dir`: {path} cannot be written: {error}") from error
