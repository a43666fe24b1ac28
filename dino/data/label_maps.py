"""Label maps on disk: indexed PNGs, whose pixels are labels and whose palette says in which colors to show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino.errors import DataError
from dino.files import atomic_write

MODES = ("P", "L", "1")  # of Pillow: palette, gray, bilevel; a pixel's value is its label


@dataclass(frozen=True, kw_only=True)
class ScoredFrame:
    """The files of one frame.

    Attributes:
        number: Place among all frames of the clip, from 0, scored or not.
        image: The picture that was segmented; None where the data set came without pictures.
        truth: True labels.
        prediction: Predicted labels.
    """

    number: int
    image: Path | None
    truth: Path
    prediction: Path


@dataclass(frozen=True, kw_only=True)
class ScoredClip:
    """A DAVIS sequence or a driving run.

    Attributes:
        name: Of the sequence or run.
        first: Its first true label map.
        frames: Those to score, in order.
        palette: Colors for label maps that have none.
        unlabelled: Frames of a run that have no true labels, and so cannot be scored.
    """

    name: str
    first: Path
    frames: tuple[ScoredFrame, ...]
    palette: bytes
    unlabelled: int = 0


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
        raise DataError(
            f"{path} is no label map: wants an indexed or gray 8-bit PNG, not one of mode {mode}"
        )
    return LabelMap(labels, palette)


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
    with atomic_write(path, "`output_dir`:") as temporary:
        picture.save(temporary, format="PNG")
