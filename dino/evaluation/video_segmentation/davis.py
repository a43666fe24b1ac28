"""Clips whose first frame is labeled, the layout of DAVIS 2017, and the size of its frames.

ROOT/ImageSets/2017/val.txt      names of the sequences, one per line
ROOT/JPEGImages/480p/SEQ/*.jpg   frames, in the order of the numbers in their names
ROOT/Annotations/480p/SEQ/*.png  label maps; only the first frame's is read
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dino.data.crops import resize_bilinear
from dino.data.decode import read_size
from dino.data.frames import list_pictures
from dino.data.photometric import IMAGENET_MEAN, Normalization
from dino.errors import DataError
from dino.files import read_bounded
from dino.plain_pickle.limits import shorten

logger = logging.getLogger(__name__)

SHORT_SIDE = 480  # pixels; read_frame of the original
MULTIPLE = 64  # pixels; the long side is rounded down to a multiple
RESOLUTION = "480p"
SPLIT = Path("ImageSets", "2017", "val.txt")
LARGEST_LIST = 1 << 20  # bytes of val.txt; that of DAVIS has 300
LONGEST_NAME = 255  # bytes of a folder's name, on every common file system
# In this one evaluation the original's red deviation is 0.228, and ImageNet's is 0.229. Published
# figures were computed with 0.228, so it stays.
FRAME_NORMALIZATION = Normalization(mean=IMAGENET_MEAN, std=(0.228, 0.224, 0.225))
ALL_LABELS = range(256)  # the values of a byte
VOID = 255  # pixels of no object


def _spread_bits(label: int) -> tuple[int, int, int]:
    """Compute a label's color in the palette of PASCAL VOC and DAVIS from the bits of the label."""
    red, green, blue = (
        sum((label >> (3 * level + channel) & 1) << (7 - level) for level in range(3))
        for channel in range(3)
    )
    return red, green, blue


DAVIS_PALETTE = bytes(level for label in ALL_LABELS for level in _spread_bits(label))


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Consecutive frames of one size. The first frame is labeled.

    Attributes:
        name: Name of the sequence or run, and of the folder of its predictions.
        frames: Paths, in order, at least one.
        labels: Path of the first frame's label map.
        palette: Colors for label maps without a palette.
        has_void: Whether label 255 means void, as in DAVIS.
    """

    name: str
    frames: tuple[Path, ...]
    labels: Path
    palette: bytes
    has_void: bool = False


def open_davis(data_path: str | None) -> list[Clip]:
    """List the sequences of the validation split.

    Raises:
        DataError: The folder, its list, a sequence or its labels are missing, or the sizes within a
            sequence differ.
    """
    if not data_path:
        raise DataError(
            f"`data_path` is missing: name the folder of DAVIS 2017, which holds {SPLIT}"
        )
    root = Path(data_path)
    return check_clips(_open_sequence(root, name) for name in read_split(root))


def read_split(root: Path) -> list[str]:
    """Read the names of the sequences of the validation split.

    Raises:
        DataError: The list cannot be read or is empty, or a name is repeated or not a folder name.
    """
    path = root / SPLIT
    try:
        names = read_bounded(path, LARGEST_LIST).decode("utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, the list of sequences, cannot be read: {error}") from error
    if not names:
        raise DataError(f"{path} names no sequence")
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{path} names a sequence twice: {shorten(name)}")
        is_name = Path(name).name == name != ".." and name.isprintable()
        if not is_name or len(name.encode()) > LONGEST_NAME:
            raise DataError(
                f"{path} names {shorten(name)}",
                remedy="a sequence must be a folder name without a slash",
            )
    return names


def list_truths(root: Path, name: str) -> tuple[Path, ...]:
    """List the true label maps of a sequence, at least three: the first and last are not scored.

    Raises:
        DataError: There are fewer than three, or the map of a frame in between is missing.
    """
    truths = list_frames(root / "Annotations" / RESOLUTION / name, ".png")
    for image in index_images(root, name).values():
        if not (truth := truths[0].with_name(f"{image.stem}.png")).is_file():
            raise DataError(
                f"{truth} does not exist", remedy=f"it must hold the true labels of {image}"
            )
    if len(truths) < 3:
        raise DataError(
            f"{truths[0].parent} must hold at least 3 frames (got {len(truths)})",
            remedy="the first and the last are not scored",
        )
    return truths


def index_images(root: Path, name: str) -> dict[str, Path]:
    """List the frames of a sequence by name; there are none where only label maps exist."""
    folder = root / "JPEGImages" / RESOLUTION / name
    paths = list_pictures(folder) if folder.is_dir() else []
    return {path.stem: path for path in paths if path.suffix == ".jpg"}


def _open_sequence(root: Path, name: str) -> Clip:
    frames = list_frames(root / "JPEGImages" / RESOLUTION / name)
    labels = root / "Annotations" / RESOLUTION / name / f"{frames[0].stem}.png"
    return Clip(name=name, frames=frames, labels=labels, palette=DAVIS_PALETTE, has_void=True)


def list_frames(folder: Path, ending: str = ".jpg") -> tuple[Path, ...]:
    """List the frames in a folder by number. A warning names the first with another ending.

    Raises:
        DataError: There are no frames.
    """
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist")
    pictures = list_pictures(folder)
    frames = tuple(path for path in pictures if path.suffix == ending)
    if not frames:
        raise DataError(f"{folder} holds no frames (*{ending})")
    others = [path for path in pictures if path.suffix != ending]
    if others:
        logger.warning("%s is ignored: frames of %s are *%s", others[0].name, folder, ending)
    return frames


def check_clips(clips: Iterable[Clip]) -> list[Clip]:
    """Check the labels and the sizes of all clips before any is segmented.

    Raises:
        DataError: Labels are missing, or sizes differ. The text names the file.
    """
    checked = list(clips)
    for clip in checked:
        if not clip.labels.is_file():
            raise DataError(
                f"{clip.labels} does not exist",
                remedy=f"it must hold the labels of {clip.frames[0]}",
            )
        check_sizes(clip.labels, clip.frames)
    return checked


def check_sizes(labels: Path, others: Iterable[Path]) -> None:
    """Check that pictures have the size of a label map.

    Raises:
        DataError: A picture has another size. The text names it.
    """
    height, width = read_size(labels)
    for path in others:
        if (size := read_size(path)) != (height, width):
            raise DataError(
                f"{path} must have the size of {labels}, {width}x{height} pixels "
                f"(got {size[1]}x{size[0]})"
            )


def drop_void(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn void into background (0). Without other objects 255 is an object, as in DAVIS 2016."""
    has_objects = ((labels > 0) & (labels < VOID)).any()
    return np.where(labels == VOID, np.uint8(0), labels) if has_objects else labels


def compute_frame_size(height: int, width: int) -> tuple[int, int]:
    """Return the segmented size: short side 480, long side in proportion, a multiple of 64."""
    if height > width:
        return SHORT_SIDE * height // width // MULTIPLE * MULTIPLE, SHORT_SIDE
    return SHORT_SIDE, SHORT_SIDE * width // height // MULTIPLE * MULTIPLE


def resize_frame(image: Tensor) -> Tensor:
    """Resize a frame (C, H, W) uint8 to `compute_frame_size`, as in the original."""
    return resize_bilinear(image, compute_frame_size(*image.shape[1:]))
