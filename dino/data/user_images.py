"""Images that a program hands over: a torch Dataset, or a list of PIL images, arrays, tensors and paths."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino.data.decode import read_image
from dino.data.image_source import ImageSource
from dino.errors import DataError

logger = logging.getLogger(__name__)

WANTED = "a PIL image, a uint8 tensor (C, H, W), a uint8 array (H, W, C) or (H, W), or a path"


@dataclass(frozen=True, kw_only=True)
class UserSource(ImageSource):
    """Images by index of something with `__len__` and `__getitem__`, as torch's map-style data sets are.

    Attributes:
        images: Gives an image, or a tuple that begins with one; travels to the loader processes.
        positions: Index in `images` of each image here.
    """

    images: Any = field(compare=False)
    positions: tuple[int, ...]

    def read(self, index: int, channels: int, *, whole: bool = False) -> Tensor:  # noqa: ARG002 - there are no parts
        """Image `index` as (C, H, W) uint8.

        Raises:
            DataError: It is no image, or has other channels.
        """
        return self.read_labelled(index, channels)[0]

    def read_labelled(self, index: int, channels: int) -> tuple[Tensor, int]:
        """Image `index` and its label: that of the data set, else that of the item, (image, label, ...), else -1.

        Raises:
            DataError: It is no image, or has other channels.
        """
        item = self.images[self.positions[index]]
        image, label = (item[0], item[1]) if isinstance(item, tuple) and len(item) > 1 else (item, -1)
        image = image[0] if isinstance(image, tuple) else image
        pixels = to_pixels(image, channels, f"image {self.positions[index]} of the data set")
        return pixels, int(label) if self.labels is None else self.labels[index]

    def fingerprint(self) -> str:
        """A digest of the length alone: what a program makes up has no names."""
        return hashlib.sha256(f"{len(self)} images of a program".encode()).hexdigest()[:16]

    def selected(self, indices: Sequence[int]) -> UserSource:
        """The images of these indices, in their order."""
        return replace(
            self,
            names=tuple(self.names[index] for index in indices),
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            positions=tuple(self.positions[index] for index in indices),
        )


def wrap_images(images: Any, *, labels: Sequence[int] | None = None) -> UserSource:
    """Take a program's images as a source.

    Args:
        images: Has `__len__` and `__getitem__`; items are images or tuples (image, label, ...). A tensor (N, C, H, W)
            or a list will do.
        labels: Class index of each image; without them `images.targets` or `images.labels`, else none.

    Raises:
        DataError: It has no length or no items, or not as many labels as images.
    """
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise DataError(
            f"data must be a path or a map-style data set with a length (got {type(images).__name__})",
            remedy="an iterable-style data set can be written to tar shards first",
        )
    if not len(images):
        raise DataError("the data set holds no image")
    found = labels if labels is not None else getattr(images, "targets", getattr(images, "labels", None))
    numbers = None if found is None else tuple(int(label) for label in found)
    if numbers is not None and len(numbers) != len(images):
        raise DataError(f"there are {len(numbers)} labels for {len(images)} images")
    count = 0 if numbers is None else max(numbers) + 1
    return UserSource(
        root=Path(type(images).__name__),
        names=tuple(_name(images, index) for index in range(len(images))),
        labels=numbers,
        classes=tuple(map(str, getattr(images, "classes", range(count)))),
        images=images,
        positions=tuple(range(len(images))),
    )


def read_labels(images: Any) -> list[int] | None:
    """The labels that the items of a data set hold, (image, label, ...); None where they hold none."""
    items = [images[index] for index in range(len(images))]
    if not all(isinstance(item, tuple) and len(item) > 1 for item in items):
        return None
    return [int(item[1]) for item in items]


def to_pixels(image: Any, channels: int, name: str) -> Tensor:
    """An image as (C, H, W) uint8.

    Raises:
        DataError: It is no image, or has other channels; the text names what was got.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), channels)
    if isinstance(image, Image.Image):
        image = np.array(image.convert("L" if channels == 1 else "RGB"))
    if isinstance(image, np.ndarray):
        image = torch.tensor(image[..., None] if image.ndim == 2 else image).movedim(-1, 0)
    if not isinstance(image, Tensor) or image.ndim != 3 or image.dtype != torch.uint8:
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"{name} must be {WANTED} (got {got})")
    if image.shape[0] != channels:
        raise DataError(f"{name} has {image.shape[0]} channels, `in_chans` asks for {channels}", value=image.shape[0])
    if 0 in image.shape:
        raise DataError(f"{name} is empty: {tuple(image.shape)}")
    return image.contiguous()


def _name(images: Any, index: int) -> str:
    """The path of an item of a list of paths, else its number."""
    if isinstance(images, list | tuple) and isinstance(images[index], str | os.PathLike):
        return os.fspath(images[index])
    return str(index)
