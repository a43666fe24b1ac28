"""Label maps: indexed PNGs whose pixels are labels and whose palette holds the display colors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dino.data.decode import open_picture
from dino.errors import DataError
from dino.files import MARK, atomic_write

MODES = ("P", "L", "1")  # of Pillow: palette, gray, bilevel; a pixel's value is its label


@dataclass(frozen=True, kw_only=True)
class ScoredFrame:
    """The files of one frame.

    Attributes:
        number: Index among all frames of the clip, scored or not, from 0.
        image: The segmented picture; None if the dataset has no pictures.
        truth: File of the true labels.
        prediction: File of the predicted labels.
    """

    number: int
    image: Path | None
    truth: Path
    prediction: Path


@dataclass(frozen=True, kw_only=True)
class ScoredClip:
    """A DAVIS sequence or a driving run.

    Attributes:
        name: Name of the sequence or run.
        first: Its first true label map.
        frames: The frames to score, in order.
        palette: Colors for label maps without a palette.
        unlabelled: Number of frames without true labels, which cannot be scored.
    """

    name: str
    first: Path
    frames: tuple[ScoredFrame, ...]
    palette: bytes
    unlabelled: int = 0


class LabelMap(NamedTuple):
    """Labels (H, W) uint8, and the file's palette of 3 bytes per label, or None."""

    labels: NDArray[np.uint8]
    palette: bytes | None


def read_label_map(path: Path) -> LabelMap:
    """Read an indexed, gray or bilevel PNG of at most 8 bits.

    Raises:
        DataError: The file is missing, damaged or not a label map; the text names it.
    """
    try:
        # Only PNG keeps labels exactly; and no other decoder of Pillow sees a stranger's file.
        with open_picture(path, ("PNG",)) as picture:
            mode, labels = picture.mode, np.array(picture).astype(np.uint8)
            palette = bytes(picture.getpalette() or ()) or None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        raise DataError(f"{path} cannot be decoded: {error}") from error
    if mode not in MODES:
        raise DataError(f"{path} must be an indexed or gray 8-bit PNG label map (got mode {mode})")
    return LabelMap(labels, palette)


def resize_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to (height, width) with nearest labels, by Pillow's rule."""
    return np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def write_label_map(path: Path, labels: NDArray[np.uint8], palette: bytes) -> None:
    """Write (H, W) labels as an indexed PNG, atomically.

    Raises:
        OptionError: The folder cannot be written to.
    """
    picture = Image.fromarray(labels)
    picture.putpalette(palette)
    with atomic_write(path, "`output_dir`:") as temporary:
        picture.save(temporary, format="PNG", pnginfo=mark_png())


def mark_png() -> PngInfo:
    """The mark by which a picture is recognized as one of this package."""
    info = PngInfo()
    info.add_text("Comment", MARK)
    return info
