"""Images that a program hands over: a torch Dataset, or a list of PIL images, arrays, tensors and paths."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from dino.data.decode import MODES, read_image, to_levels
from dino.data.image_source import ImageSource
from dino.errors import DataError

WANTED = "a PIL image, a uint8 tensor (C, H, W), a uint8 array (H, W, C) or (H, W), or a path"
NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class UserSource(ImageSource):
    """Images by index of something with `__len__` and `__getitem__`, as torch's map-style data sets are.

    Attributes:
        images: Gives an image, or a tuple that begins with one; travels to the loader processes.
        positions: Index in `images` of each image here.
        in_memory: Whether reading an image is no work, so that loader processes would only copy it.
    """

    images: Any = field(compare=False)
    positions: tuple[int, ...]
    in_memory: bool = False

    def read(self, index: int, channels: int, *, whole: bool = False) -> Tensor:  # noqa: ARG002 - there are no parts
        """Image `index` as (C, H, W) uint8.

        Raises:
            DataError: It cannot be had, is no image, or has other channels.
        """
        return self.read_labelled(index, channels)[0]

    def read_labelled(self, index: int, channels: int) -> tuple[Tensor, int]:
        """Image `index` and its label: that of the data set, else that of the item, (image, label, ...), else -1.

        Raises:
            DataError: It cannot be had, is no image, or has other channels.
        """
        position = self.positions[index]
        try:
            image, label = _split(self.images[position])
            pixels = to_pixels(image, channels, f"image {position} of the data set")
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - the program's own code raises anything
            raise DataError(
                f"image {position} of the data set cannot be read: {type(error).__name__}: {error}"
            ) from error
        return pixels, label if self.labels is None else self.labels[index]

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
            or a list will do, and so will one picture.
        labels: Class index of each image; by default `images.targets` or `images.labels`, where these are whole
            numbers, else those of the items as they are read.

    Raises:
        DataError: It has no length or no items, or not as many labels as images.
    """
    images = [images] if isinstance(images, Image.Image) else images
    unsized = not hasattr(images, "__len__") or not hasattr(images, "__getitem__")
    if unsized or isinstance(images, IterableDataset):
        raise DataError(
            f"images must be a path, or a list or map-style data set of images (got {type(images).__name__})",
            remedy="put a single image into a list; write an iterable-style data set to tar shards first",
        )
    if not len(images):
        raise DataError("the data set holds no image")
    numbers = _find_labels(images) if labels is None else tuple(labels)
    if numbers is not None and len(numbers) != len(images):
        raise DataError(f"there are {len(numbers)} labels for {len(images)} images")
    paths = isinstance(images, list | tuple) and all(
        isinstance(image, str | os.PathLike) for image in images
    )
    return UserSource(
        root=Path(type(images).__name__),
        names=tuple(os.fspath(image) for image in images)
        if paths
        else tuple(map(str, range(len(images)))),
        labels=numbers,
        classes=_find_classes(images),
        images=images,
        positions=tuple(range(len(images))),
        in_memory=not paths and not isinstance(images, Dataset),
    )


def read_labels(images: Any) -> list[int] | None:
    """The labels that the items of a data set hold, (image, label, ...); None where one holds none.

    Every item is read for it, and its image with it.
    """
    labels = []
    for index in range(len(images)):
        labels.append(_split(images[index])[1])
        if labels[-1] == NO_LABEL:
            return None
    return labels


def to_pixels(image: Any, channels: int, name: str) -> Tensor:
    """An image as (C, H, W) uint8 in host memory.

    Args:
        image: Of any kind that is taken; pictures are converted as those in files are, but not turned upright.
        channels: C.
        name: Of the image, for the error.

    Raises:
        DataError: It is no image, or has other channels; the text names what was got.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), channels)
    if isinstance(image, Image.Image) and channels in MODES:
        return torch.from_numpy(to_levels(image, channels)).permute(2, 0, 1)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in {2, 3}:
        image = torch.from_numpy(np.array(image if image.ndim == 3 else image[..., None])).permute(
            2, 0, 1
        )
    if not isinstance(image, Tensor) or image.ndim != 3 or image.dtype != torch.uint8:
        raise DataError(f"{name} must be {WANTED} (got {_describe(image)})")
    if image.shape[0] != channels:
        raise DataError(
            f"{name} has {image.shape[0]} channels, `in_chans` asks for {channels}",
            value=image.shape[0],
        )
    if 0 in image.shape:
        raise DataError(f"{name} is empty: {tuple(image.shape)}")
    return image.cpu()


def _split(item: Any) -> tuple[Any, int]:
    """Image and label of a data set's item; -1 where it is an image alone, or what stands beside it is no class."""
    if not isinstance(item, tuple | list) or not item:
        return item, NO_LABEL
    return item[0], _read_label(item[1]) if len(item) > 1 else NO_LABEL


def _read_label(value: Any) -> int:
    """A whole number of any library as int, else -1."""
    try:
        return operator.index(value)
    except TypeError:
        return NO_LABEL


def _find_labels(images: Any) -> tuple[int, ...] | None:
    """What the data set says of its labels without reading an image, as torchvision's do."""
    found = getattr(images, "targets", getattr(images, "labels", None))
    if (
        found is None
        or getattr(images, "target_transform", None) is not None
        or not isinstance(found, Iterable)
    ):
        return None
    labels = tuple(_read_label(label) for label in found)
    return None if NO_LABEL in labels else labels


def _find_classes(images: Any) -> tuple[str, ...]:
    """Names of the classes, as torchvision's data sets have them; none where there are none."""
    found = getattr(images, "classes", ())
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def _describe(image: Any) -> str:
    """What was got in place of an image."""
    if isinstance(image, Tensor | np.ndarray):
        return f"{image.dtype} {tuple(image.shape)}"
    return (
        f"a picture of mode {image.mode}"
        if isinstance(image, Image.Image)
        else type(image).__name__
    )
