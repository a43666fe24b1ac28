"""Revisited Oxford and Paris (Radenovic et al., 2018): database, queries, and which images show a query's landmark.

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

LONGEST = 1024  # characters in an image's name: a small file may hold the same long text many times


class Truth(NamedTuple):
    """Indices into the database, (n,) int64 each: clearly visible, hard to see, and neither right nor wrong."""

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """One of the two sets: N database images, then Q queries, as one list; and the truth of each query."""

    source: ImageSource
    truths: tuple[Truth, ...]


def open_landmarks(data_path: str | None, name: str, *, crop_queries: bool) -> Landmarks:
    """Read the ground truth of a set and find its images.

    Args:
        data_path: The folder that holds `NAME/gnd_NAME.pkl` and `NAME/jpg`.
        name: `roxford5k` or `rparis6k`.
        crop_queries: Cut each query to the box that the ground truth has for it.

    Raises:
        DataError: A missing folder, file or image, or a ground truth that is damaged or not of its form.
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
        found = _interpret(content, path.parent, crop_queries)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is no ground truth of {name}: {reason}") from error
    missing = [image for image in found.source.names if not os.path.isfile(path.parent / image)]
    if missing:
        raise DataError(
            f"{path} lists {missing[0]}, which does not exist",
            remedy=f"{len(missing)} of {len(found.source)} do not",
        )
    return found


def _read(path: Path) -> Any:
    """The content of a ground truth; it runs nothing, see `dino.plain_pickle`."""
    try:
        return plain_pickle.loads(path.read_bytes())
    except (OSError, plain_pickle.PlainPickleError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _interpret(content: Any, folder: Path, crop_queries: bool) -> Landmarks:
    """The set that the ground truth describes; what it has not, or not as it should be, is an error of Python's."""
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds a {type(content).__name__}, wants a dictionary")
    names, queries = (_read_names(content[key], key) for key in ("imlist", "qimlist"))
    entries = content["gnd"]
    if not isinstance(entries, Sequence) or not all(
        isinstance(entry, Mapping) for entry in entries
    ):
        raise TypeError("gnd is no list of dictionaries")
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
        raise TypeError(f"{key} is no list of image names")
    return tuple(f"jpg/{name}.jpg" for name in names)


def _read_indices(value: Any, count: int, key: str) -> np.ndarray:
    # Nothing but integers becomes an array here: numpy pads texts to the longest one, in any amount of memory.
    integers = isinstance(value, list | tuple) and all(
        isinstance(index, int | np.integer) for index in value
    )
    indices = np.asarray(value if integers or isinstance(value, np.ndarray) else None)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise TypeError(f"{key} is no list of indices")
    if indices.size and not (0 <= indices.min() and indices.max() < count):
        raise ValueError(f"{key} has indices beyond the {count} images of imlist")
    return indices.astype(np.int64)


def _read_box(value: Any) -> Box:
    left, top, right, bottom = (round(float(edge)) for edge in value)
    return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An image to its view: the longer side brought down, the aspect kept, never enlarged, as Pillow's thumbnail does.

    Attributes:
        longest: The longer side at most, in pixels.
        patch: Side of a patch in pixels: what fills none is cut off, see `cut_to_patches`; 1 cuts nothing off.
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
        """(H', W') of the view of an image of `height` x `width` pixels."""
        return cut_to_patches(*compute_size(height, width, self.longest), self.patch)


def compute_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(H, W) of Pillow's thumbnail: the shorter side is the whole number that keeps the aspect best, at least 1."""
    if max(height, width) <= longest:
        return height, width
    aspect = width / height
    if aspect > 1:
        return _round(
            longest / aspect, lambda side: abs(aspect - longest / side) if side else 0
        ), longest
    return longest, _round(longest * aspect, lambda side: abs(aspect - side / longest))


def _round(exact: float, error: Callable[[int], float]) -> int:
    return max(min(math.floor(exact), math.ceil(exact), key=error), 1)


def cut_to_patches(height: int, width: int, patch: int) -> tuple[int, int]:
    """(H, W) less the rows and columns at the end that fill no patch.

    A vision transformer drops them itself; without them far fewer shapes are left, hence larger batches and fewer
    graphs. Its position embedding asks whether the image is square, so one that was not keeps a pixel more.
    """
    rows, columns = (side - side % patch or side for side in (height, width))
    if rows == columns and height != width:
        return (rows + 1, columns) if height > width else (rows, columns + 1)
    return rows, columns
