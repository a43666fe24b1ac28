"""Clips to segment: frames of which the first is labelled; the layout of DAVIS 2017, and how its frames are scaled.

ROOT/ImageSets/2017/val.txt      names of the sequences, one a line
ROOT/JPEGImages/480p/SEQ/*.jpg   frames, in the order of their names
ROOT/Annotations/480p/SEQ/*.png  label maps; only the first frame's is read
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dino.data.label_maps import DAVIS_PALETTE, read_size
from dino.data.photometric import IMAGENET_MEAN, Normalisation
from dino.errors import DataError

SHORT_SIDE = 480  # pixels; read_frame of the original
MULTIPLE = 64  # pixels; the long side is cut down to one
RESOLUTION = "480p"
SPLIT = Path("ImageSets", "2017", "val.txt")
# The original's red deviation in this one evaluation is 0.228, where ImageNet's is 0.229. Published figures were
# computed with it, so it stays.
FRAME_NORMALISATION = Normalisation(mean=IMAGENET_MEAN, std=(0.228, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Consecutive frames of one size, the first of which is labelled.

    Attributes:
        name: Of the sequence or run, and so of the folder of its predictions.
        frames: Paths, in order, at least one.
        labels: Path of the first frame's label map.
        palette: Colours for label maps that have none.
    """

    name: str
    frames: tuple[Path, ...]
    labels: Path
    palette: bytes


def open_davis(data_path: str | None) -> list[Clip]:
    """List the sequences of the validation split.

    Raises:
        DataError: The folder, its list, a sequence or the labels of one are missing, or sizes differ within one.
    """
    if not data_path:
        raise DataError(f"--data_path is missing: name the folder of DAVIS 2017, which holds {SPLIT}")
    root = Path(data_path)
    try:
        names = (root / SPLIT).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--data_path {root}: {root / SPLIT}, the list of sequences, cannot be read: {error}"
        ) from error
    if not names:
        raise DataError(f"{root / SPLIT} names no sequence")
    return check_clips(_open_sequence(root, name) for name in names)


def _open_sequence(root: Path, name: str) -> Clip:
    frames = list_frames(root / "JPEGImages" / RESOLUTION / name)
    labels = root / "Annotations" / RESOLUTION / name / f"{frames[0].stem}.png"
    return Clip(name=name, frames=frames, labels=labels, palette=DAVIS_PALETTE)


def list_frames(folder: Path) -> tuple[Path, ...]:
    """The frames in a folder by name.

    Raises:
        DataError: There are none.
    """
    frames = tuple(sorted(folder.glob("*.jpg")))
    if not frames:
        raise DataError(f"{folder} {'holds no frame (looked for *.jpg)' if folder.is_dir() else 'does not exist'}")
    return frames


def check_clips(clips: Iterable[Clip]) -> list[Clip]:
    """Refuse, before any of them is segmented, clips whose labels are missing or whose sizes differ.

    Raises:
        DataError: The text names the file.
    """
    checked = list(clips)
    for clip in checked:
        if not clip.labels.is_file():
            raise DataError(f"{clip.labels} does not exist; it should hold the labels of {clip.frames[0]}")
        height, width = read_size(clip.labels)
        for path in clip.frames:
            if (found := read_size(path)) != (height, width):
                raise DataError(f"{path} is {found[1]}x{found[0]} pixels, its labels {clip.labels} {width}x{height}")
    return checked


def compute_frame_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which a frame is segmented: 480 the short one, the long one in proportion, less mod 64."""
    if height > width:
        return SHORT_SIDE * height // width // MULTIPLE * MULTIPLE, SHORT_SIDE
    return SHORT_SIDE, SHORT_SIDE * width // height // MULTIPLE * MULTIPLE


def resize_frame(image: Tensor) -> Tensor:
    """A frame (C, H, W) uint8 at the size above; bilinear without smoothing and rounded, by the original's OpenCV."""
    # Loaders share the cores already; and where OpenCV's threads are OpenMP's or TBB's, they do not outlive a fork.
    cv2.setNumThreads(1)
    size = compute_frame_size(*image.shape[1:])
    scaled = cv2.resize(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), size[::-1])
    return torch.from_numpy(scaled.reshape(*size, len(image))).permute(2, 0, 1)
