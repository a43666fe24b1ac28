"""Revisited Oxford and Paris (Radenovic et al., 2018): database, queries and ground truth.

Shapes: C channels, H W pixels, N database images, Q queries.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dino import plain_pickle
from dino.data.crops import resize_lanczos
from dino.data.decode import Box
from dino.data.image_source import ImageSource
from dino.errors import DataError
from dino.files import read_bounded

LARGEST = 256 << 20  # bytes of a ground truth; that of a million images has less
LONGEST = 1024  # characters of an image's name: a small pickle can repeat a long text many times


class Truth(NamedTuple):
    """Indices into the database, (n,) int64 each: clearly visible, hard to see, and ignored."""

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """One of the two sets: N database images, then Q queries, and each query's ground truth."""

    source: ImageSource
    truths: tuple[Truth, ...]


def open_landmarks(data_path: str | None, name: str, *, crop_queries: bool) -> Landmarks:
    """Read the ground truth of a set and find its images.

    Args:
        data_path: The folder that holds `NAME/gnd_NAME.pkl` and `NAME/jpg`.
        name: `roxford5k` or `rparis6k`.
        crop_queries: Crop each query to its box in the ground truth.

    Raises:
        DataError: A folder, a file or an image is missing, or the ground truth is damaged or has
            another form.
    """
    layout = f"name the folder that holds {name}/gnd_{name}.pkl and {name}/jpg/*.jpg"
    if not data_path:
        raise DataError(f"`data_path` is missing: {layout}")
    path = Path(data_path, name, f"gnd_{name}.pkl")
    if not path.is_file():
        raise DataError(
            f"`data_path` {data_path}: {path} does not exist", value=data_path, remedy=f"{layout}"
        )
    content = _read(path)
    try:
        landmarks = _interpret(content, path.parent, crop_queries)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is not a ground truth of {name}: {reason}") from error
    missing = [image for image in landmarks.source.names if not os.path.isfile(path.parent / image)]
    if missing:
        raise DataError(
            f"{path} lists {missing[0]}, which does not exist",
            remedy=f"{len(missing)} of {len(landmarks.source)} images are missing",
        )
    return landmarks


def _read(path: Path) -> Any:
    """Read a ground truth without running code from it, see `dino.plain_pickle`."""
    try:
        return plain_pickle.loads(read_bounded(path, LARGEST))
    except (OSError, plain_pickle.PlainPickleError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _interpret(content: Any, folder: Path, crop_queries: bool) -> Landmarks:
    """Interpret the ground truth. A missing or malformed entry raises an exception of Python."""
    if not isinstance(content, Mapping):
        raise TypeError(f"it must hold a dictionary (got {type(content).__name__})")
    names, queries = (_read_names(content[key], key) for key in ("imlist", "qimlist"))
    entries = content["gnd"]
    if not isinstance(entries, Sequence) or not all(
        isinstance(entry, Mapping) for entry in entries
    ):
        raise TypeError("gnd is not a list of dictionaries")
    if len(entries) != len(queries):
        raise ValueError(f"gnd describes {len(entries)} queries, qimlist names {len(queries)}")
    truths = tuple(
        Truth(*(_read_indices(entry[key], len(names), key) for key in Truth._fields))
        for entry in entries
    )
    if not any(len(truth.easy) + len(truth.hard) for truth in truths):
        raise ValueError("no query has an easy or hard image")
    boxes = (
        (*(None for _ in names), *(_read_box(entry["bbx"]) for entry in entries))
        if crop_queries
        else None
    )
    return Landmarks(
        source=ImageSource(root=folder, names=names + queries, boxes=boxes), truths=truths
    )


def _read_names(value: Any, key: str) -> tuple[str, ...]:
    names = tuple(value)
    if (
        not names
        or isinstance(value, str)
        or not all(isinstance(name, str) and len(name) < LONGEST for name in names)
    ):
        raise TypeError(f"{key} is not a list of image names")
    return tuple(f"jpg/{name}.jpg" for name in names)


def _read_indices(value: Any, count: int, key: str) -> np.ndarray:
    # Only integers become an array: numpy pads texts to the longest one, which can exhaust memory.
    integers = isinstance(value, list | tuple) and all(
        isinstance(index, int | np.integer) for index in value
    )
    indices = np.asarray(value if integers or isinstance(value, np.ndarray) else None)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise TypeError(f"{key} is not a list of indices")
    if indices.size and not (0 <= indices.min() and indices.max() < count):
        raise ValueError(f"{key} has indices beyond the {count} images of imlist")
    return indices.astype(np.int64)


def _read_box(value: Any) -> Box:
    left, top, right, bottom = (round(float(edge)) for edge in value)
    return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """Shrink an image to its view as Pillow's thumbnail does: the aspect is kept, never enlarged.

    Attributes:
        longest: Maximum of the longer side in pixels.
        patch: Side of a patch in pixels. Partial patches are cropped, see `cut_to_patches`; 1 crops
            nothing.
    """

    longest: int
    patch: int = 1

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W) uint8, C 1 or 3, channels last in memory -> (C, H', W') uint8."""
        height, width = image.shape[1:]
        size = compute_size(height, width, self.longest)
        if size != (height, width):
            image = resize_lanczos(image, size)
        height, width = cut_to_patches(*size, self.patch)
        return image[:, :height, :width]

    def compute_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H', W') of the view of an image of `height` x `width` pixels."""
        return cut_to_patches(*compute_size(height, width, self.longest), self.patch)


def compute_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return (H, W) of Pillow's thumbnail. The shorter side, at least 1, best keeps the aspect."""
    if max(height, width) <= longest:
        return height, width
    aspect = width / height
    if aspect > 1:
        height = _round(longest / aspect, lambda side: abs(aspect - longest / side) if side else 0)
        return height, longest
    return longest, _round(longest * aspect, lambda side: abs(aspect - side / longest))


def _round(exact: float, error: Callable[[int], float]) -> int:
    return max(min(math.floor(exact), math.ceil(exact), key=error), 1)


def cut_to_patches(height: int, width: int, patch: int) -> tuple[int, int]:
    """Return (H, W) without the last rows and columns that do not fill a patch.

    A vision transformer drops them anyway. Without them there are far fewer shapes, so batches are
    larger and graphs fewer. The position embedding depends on whether the image is square, so an
    image that was not square keeps one pixel more.
    """
    rows, columns = (side - side % patch or side for side in (height, width))
    if rows == columns and height != width:
        return (rows + 1, columns) if height > width else (rows, columns + 1)
    return rows, columns
