"""Small data sets of label maps, written to disk in the layouts that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PALETTE = tuple(
    3 * n % 256 for n in range(768)
)  # whole: Pillow stores no more bits than a palette has colors


def save_labels(path: Path, labels: np.ndarray, palette: Sequence[int] | None = PALETTE) -> Path:
    """Write a label map as an indexed PNG, or, without a palette, as a gray one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8))
    if palette:
        picture.putpalette(palette)
    picture.save(path)
    return path


def save_image(path: Path, height: int, width: int) -> Path:
    """Write a JPEG of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (120, 100, 80)).save(path)
    return path


def make_davis(
    root: Path, sequences: dict[str, Sequence[np.ndarray]], *, images: bool = True
) -> Path:
    """Write annotations, by sequence and frame, with ImageSets and, if asked for, pictures."""
    for name, frames in sequences.items():
        for number, labels in enumerate(frames):
            save_labels(root / "Annotations" / "480p" / name / f"{number:05}.png", labels)
            if images:
                save_image(root / "JPEGImages" / "480p" / name / f"{number:05}.jpg", *labels.shape)
    split = root / "ImageSets" / "2017" / "val.txt"
    split.parent.mkdir(parents=True, exist_ok=True)
    split.write_text("".join(f"{name}\n" for name in sequences), encoding="utf-8")
    return root


def make_runs(root: Path, runs: dict[str, Sequence[np.ndarray]]) -> Path:
    """Write driving runs, by name and frame; an empty array is a frame without labels, of the first
    frame's size."""
    for name, frames in runs.items():
        for number, labels in enumerate(frames):
            save_image(root / name / "image" / f"{number:05}.jpg", *frames[0].shape)
            if labels.size:
                save_labels(root / name / "segmentation" / f"{number:05}.png", labels)
    return root


def make_predictions(root: Path, clips: dict[str, Sequence[np.ndarray]], *, start: int = 0) -> Path:
    """Write predictions, by sequence or run and frame."""
    for name, frames in clips.items():
        for number, labels in enumerate(frames, start):
            save_labels(root / name / f"{number:05}.png", labels)
    return root
