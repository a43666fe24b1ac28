"""Clips to segment: frames of which the first is labeled; the layout of DAVIS 2017, and how its frames are scaled.

ROOT/ImageSets/2017/val.txt      names of the sequences, one a line
ROOT/JPEGImages/480p/SEQ/*.jpg   frames, in the order of their names
ROOT/Annotations/480p/SEQ/*.png  label maps; only the first frame's is read
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dino.data.crops import resize_bilinear
from dino.data.decode import EXTENSIONS, read_size
from dino.data.photometric import IMAGENET_MEAN, Normalization
from dino.errors import DataError

logger = logging.getLogger(__name__)

SHORT_SIDE = 480  # pixels; read_frame of the original
MULTIPLE = 64  # pixels; the long side is cut down to one
RESOLUTION = "480p"
SPLIT = Path("ImageSets", "2017", "val.txt")
# The original's red deviation in this one evaluation is 0.228, where ImageNet's is 0.229. Published figures were
# computed with it, so it stays.
FRAME_NORMALIZATION = Normalization(mean=IMAGENET_MEAN, std=(0.228, 0.224, 0.225))
ALL_LABELS = range(256)  # what one byte holds
VOID = 255  # pixels that belong to nothing


def _spread_bits(label: int) -> tuple[int, int, int]:
    """Color of a label in the palette of PASCAL VOC and DAVIS: its bits, dealt to red, green and blue from the top."""
    red, green, blue = (
        sum((label >> (3 * level + channel) & 1) << (7 - level) for level in range(3))
        for channel in range(3)
    )
    return red, green, blue


DAVIS_PALETTE = bytes(level for label in ALL_LABELS for level in _spread_bits(label))


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Consecutive frames of one size, the first of which is labeled.

    Attributes:
        name: Of the sequence or run, and so of the folder of its predictions.
        frames: Paths, in order, at least one.
        labels: Path of the first frame's label map.
        palette: Colors for label maps that have none.
        has_void: Whether label 255 is no label, as in DAVIS.
    """

    name: str
    frames: tuple[Path, ...]
    labels: Path
    palette: bytes
    has_void: bool = False


def open_davis(data_path: str | None) -> list[Clip]:
    """List the sequences of the validation split.

    Raises:
        DataError: The folder, its list, a sequence or the labels of one are missing, or sizes differ within one.
    """
    if not data_path:
        raise DataError(
            f"`data_path` is missing: name the folder of DAVIS 2017, which holds {SPLIT}"
        )
    root = Path(data_path)
    return check_clips(_open_sequence(root, name) for name in read_split(root))


def read_split(root: Path) -> list[str]:
    """Names of the sequences of the validation split.

    Raises:
        DataError: The list cannot be read, is empty, or has a name twice or one that is no folder's.
    """
    path = root / SPLIT
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, the list of sequences, cannot be read: {error}") from error
    if not names:
        raise DataError(f"{path} names no sequence")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path} names a sequence twice: {name}")
        if Path(name).name != name or name == "..":
            raise DataError(
                f"{path} names {name}", remedy="a sequence is the name of a folder, without a slash"
            )
    return names


def list_truths(root: Path, name: str) -> tuple[Path, ...]:
    """The true label maps of a sequence, at least three: the first is given, the last is not scored.

    Raises:
        DataError: There are fewer, or one of a frame in between is missing.
    """
    truths = list_frames(root / "Annotations" / RESOLUTION / name, ".png")
    for image in sorted((root / "JPEGImages" / RESOLUTION / name).glob("*.jpg")):
        if not (truth := truths[0].with_name(f"{image.stem}.png")).is_file():
            raise DataError(
                f"{truth} does not exist", remedy=f"it should hold the true labels of {image}"
            )
    if len(truths) < 3:
        raise DataError(
            f"{truths[0].parent} has {len(truths)} frames",
            remedy="first and last are not scored, so 3 are needed",
        )
    return truths


def _open_sequence(root: Path, name: str) -> Clip:
    frames = list_frames(root / "JPEGImages" / RESOLUTION / name)
    labels = root / "Annotations" / RESOLUTION / name / f"{frames[0].stem}.png"
    return Clip(name=name, frames=frames, labels=labels, palette=DAVIS_PALETTE, has_void=True)


def list_frames(folder: Path, ending: str = ".jpg") -> tuple[Path, ...]:
    """The frames in a folder by name; a line names the first picture, if any, that has another ending.

    Raises:
        DataError: There are none.
    """
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist")
    frames = tuple(sorted(folder.glob(f"*{ending}")))
    if not frames:
        raise DataError(f"{folder} holds no frame (looked for *{ending})")
    others = sorted(
        path for path in set(folder.iterdir()) - set(frames) if path.suffix.lower() in EXTENSIONS
    )
    if others:
        logger.warning("%s is not taken: frames of %s are *%s", others[0].name, folder, ending)
    return frames


def check_clips(clips: Iterable[Clip]) -> list[Clip]:
    """Refuse, before any of them is segmented, clips whose labels are missing or whose sizes differ.

    Raises:
        DataError: The text names the file.
    """
    checked = list(clips)
    for clip in checked:
        if not clip.labels.is_file():
            raise DataError(
                f"{clip.labels} does not exist",
                remedy=f"it should hold the labels of {clip.frames[0]}",
            )
        check_sizes(clip.labels, clip.frames)
    return checked


def check_sizes(labels: Path, others: Iterable[Path]) -> None:
    """Refuse pictures of another size than a label map has.

    Raises:
        DataError: There is one; the text names it.
    """
    height, width = read_size(labels)
    for path in others:
        if (found := read_size(path)) != (height, width):
            raise DataError(f"{path} is {found[1]}x{found[0]} pixels, {labels} {width}x{height}")


def drop_void(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Void as background (0), where there are objects; 255 alone is an object, as in the masks of DAVIS 2016."""
    return (
        np.where(labels == VOID, np.uint8(0), labels)
        if ((labels > 0) & (labels < VOID)).any()
        else labels
    )


def compute_frame_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which a frame is segmented: 480 the short one, the long one in proportion, less mod 64."""
    if height > width:
        return SHORT_SIDE * height // width // MULTIPLE * MULTIPLE, SHORT_SIDE
    return SHORT_SIDE, SHORT_SIDE * width // height // MULTIPLE * MULTIPLE


def resize_frame(image: Tensor) -> Tensor:
    """A frame (C, H, W) uint8 at the size above, as the original scales it."""
    return resize_bilinear(image, compute_frame_size(*image.shape[1:]))
