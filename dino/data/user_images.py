"""Images from a user's program: a torch Dataset or a list of PIL images, arrays, tensors, paths."""

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

from dino.data.columns import pack_numbers
from dino.data.decode import MODES, read_highest, read_image, to_levels
from dino.data.image_source import ImageSource
from dino.data.levels import PixelRange, read_levels, reduce_picture
from dino.errors import DataError

WANTED = "a PIL image, a uint8 tensor (C, H, W), a uint8 array (H, W, C) or (H, W), or a path"
NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class UserSource(ImageSource):
    """Images from an object with `__len__` and `__getitem__`, such as a map-style torch Dataset.

    Attributes:
        images: Yields images or tuples that begin with one; pickled for the loader processes.
        positions: Index in `images` of each image of this source.
        in_memory: Whether images are in memory, so that loader processes would only copy them.
    """

    images: Any = field(compare=False)
    positions: Sequence[int]
    in_memory: bool = False

    def read(self, index: int, channels: int, *, whole: bool = False) -> Tensor:  # noqa: ARG002
        """Image `index` as (C, H, W) uint8.

        Raises:
            DataError: It cannot be read, is not an image, or has other channels.
        """
        return self.read_labelled(index, channels)[0]

    def read_labelled(self, index: int, channels: int) -> tuple[Tensor, int]:
        """Image `index` and its label: the dataset's, else the item's (image, label, ...), else -1.

        Raises:
            DataError: It cannot be read, is not an image, or has other channels.
        """
        position = self.positions[index]
        try:
            image, label = _split(self.images[position])
            name = f"image {position} of the data set"
            pixels = to_pixels(image, channels, name, self.pixel_range)
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            raise DataError(
                f"image {position} of the data set cannot be read: {type(error).__name__}: {error}"
            ) from error
        return pixels, label if self.labels is None else self.labels[index]

    def read_highest(self, index: int) -> int | None:
        """As of files; None if reading image `index` would run the user's code."""
        if not isinstance(self.images, list | tuple):
            return None
        image, _ = _split(self.images[self.positions[index]])
        if isinstance(image, str | os.PathLike):
            return read_highest(os.fspath(image))
        levels = read_levels(image) if isinstance(image, Image.Image) else None
        return int(levels.max()) if levels is not None and levels.dtype == np.uint16 else None

    def fingerprint(self) -> str:
        """A digest of the length alone, because these images have no stable names."""
        return hashlib.sha256(f"{len(self)} images of a program".encode()).hexdigest()[:16]

    def selected(self, indices: Sequence[int]) -> UserSource:
        """The images with the given indices, in the given order."""
        chosen = replace(
            self,
            names=tuple(self.names[index] for index in indices),
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            positions=pack_numbers([self.positions[index] for index in indices]),
        )
        return chosen.packed()


def wrap_images(images: Any, *, labels: Sequence[int] | None = None) -> UserSource:
    """Wrap a user's images as a source.

    Args:
        images: An object with `__len__` and `__getitem__` whose items are images or tuples (image,
            label, ...); also a list, a tensor (N, C, H, W), or a single picture.
        labels: Class index of each image; by default `images.targets` or `images.labels` if these
            are integers, else the labels of the items as they are read.

    Raises:
        DataError: It has no length or no items, or the number of labels differs from it.
    """
    images = [images] if isinstance(images, Image.Image) else images
    unsized = not hasattr(images, "__len__") or not hasattr(images, "__getitem__")
    if unsized or isinstance(images, IterableDataset):
        raise DataError(
            "images must be a path, or a list or map-style data set of images"
            f" (got {type(images).__name__})",
            remedy="put a single image into a list; write an iterable-style data set to tar shards",
        )
    if not len(images):
        raise DataError("the data set holds no image")
    numbers = _find_labels(images) if labels is None else tuple(labels)
    if numbers is not None and len(numbers) != len(images):
        raise DataError(f"labels must be {len(images)}, one per image (got {len(numbers)})")
    paths = isinstance(images, list | tuple) and all(
        isinstance(image, str | os.PathLike) for image in images
    )
    return UserSource(
        root=Path(type(images).__name__),
        origin=f"images of the program ({type(images).__name__})",
        names=tuple(map(os.fspath, images) if paths else map(str, range(len(images)))),
        labels=numbers,
        classes=_find_classes(images),
        images=images,
        positions=range(len(images)),
        in_memory=not paths and not isinstance(images, Dataset),
    ).packed()


def read_labels(images: Any) -> list[int] | None:
    """Read the labels of a dataset's items (image, label, ...); None if any item has none.

    Reads every item, including its image.
    """
    labels = []
    for index in range(len(images)):
        labels.append(_split(images[index])[1])
        if labels[-1] == NO_LABEL:
            return None
    return labels


def to_pixels(
    image: Any, channels: int, name: str, pixel_range: PixelRange | None = None
) -> Tensor:
    """Convert an image to (C, H, W) uint8 in host memory.

    Args:
        image: Any supported image. Pictures are converted like files, but EXIF orientation is
            ignored.
        channels: C.
        name: The image's name in the error.
        pixel_range: Levels of pictures that become 0 and 255 where they have more than 8 bits.

    Raises:
        DataError: It is not an image, or has other channels; the text includes what was given.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image), channels, pixel_range=pixel_range)
    if isinstance(image, Image.Image) and channels in MODES:
        try:
            reduced = reduce_picture(image, pixel_range=pixel_range)
            return torch.from_numpy(to_levels(reduced, channels)).permute(2, 0, 1)
        except ValueError as error:
            raise DataError(f"{name} cannot be used: {error}") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in {2, 3}:
        image = torch.from_numpy(np.array(image if image.ndim == 3 else image[..., None])).permute(
            2, 0, 1
        )
    if not isinstance(image, Tensor) or image.ndim != 3 or image.dtype != torch.uint8:
        raise DataError(f"{name} must be {WANTED} (got {_describe(image)})")
    if image.shape[0] != channels:
        raise DataError(
            f"{name} has {image.shape[0]} channels, but `in_chans` is {channels}",
            value=image.shape[0],
        )
    if 0 in image.shape:
        raise DataError(f"{name} must not be empty (got shape {tuple(image.shape)})")
    return image.cpu()


def _split(item: Any) -> tuple[Any, int]:
    """Image and label of a dataset's item; the label is -1 if missing or not an integer."""
    if not isinstance(item, tuple | list) or not item:
        return item, NO_LABEL
    return item[0], _read_label(item[1]) if len(item) > 1 else NO_LABEL


def _read_label(value: Any) -> int:
    """An integer of any library as int, else -1."""
    try:
        return operator.index(value)
    except TypeError:
        return NO_LABEL


def _find_labels(images: Any) -> tuple[int, ...] | None:
    """Labels that a dataset offers without reading images, as torchvision's datasets do."""
    targets = getattr(images, "targets", getattr(images, "labels", None))
    if (
        targets is None
        or getattr(images, "target_transform", None) is not None
        or not isinstance(targets, Iterable)
    ):
        return None
    labels = tuple(_read_label(label) for label in targets)
    return None if NO_LABEL in labels else labels


def _find_classes(images: Any) -> tuple[str, ...]:
    """Class names, if the dataset has them as torchvision's do, else ()."""
    classes = getattr(images, "classes", ())
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()


def _describe(image: Any) -> str:
    """Describe a rejected image for the error."""
    if isinstance(image, Tensor | np.ndarray):
        return f"{image.dtype} {tuple(image.shape)}"
    if isinstance(image, Image.Image):
        return f"a picture of mode {image.mode}"
    return type(image).__name__
