"""Datasets of images: what a loader process returns for one index.

Shapes: B images, C channels, H W pixels.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dino.data.crops import CropRecipe, Crops, CutViews, build_rng, cut_crops, cut_views
from dino.data.image_source import ImageSource
from dino.data.photometric import Normalization, augment
from dino.data.remote_requests import Unreachable
from dino.errors import DataError

logger = logging.getLogger(__name__)

Shape = tuple[int, int]  # H, W
BLANK = 32  # side in pixels of an image from which the size of an item is computed


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every batch this process loads."""

    rank: int = 0
    world_size: int = 1


class CropDataset(Dataset[Crops | DataError]):
    """(epoch, index) -> the crops of one image, or the error that stops the run."""

    def __init__(
        self,
        source: ImageSource,
        recipe: CropRecipe,
        *,
        seed: int,
        skip_bad: bool,
        host_normalization: Normalization | None = None,
    ) -> None:
        """Store the source and the recipe; nothing is read yet.

        Args:
            source: The images.
            recipe: Which views to crop.
            seed: Seed of all crops.
            skip_bad: Replace an unreadable image with the next one.
            host_normalization: Augment on the host, to float32 views, instead of on the device.
        """
        self.host_normalization = host_normalization
        self.source = source
        self.recipe = recipe
        self.seed = seed
        self.skip_bad = skip_bad
        self.cut: CutViews = cut_views  # the training loader chooses

    def count_bytes(self) -> int:
        """Bytes of the crops of one image."""
        image = torch.zeros((self.recipe.channels, BLANK, BLANK), dtype=torch.uint8)
        return count_bytes(self._cut(image, build_rng(0, 0, 0), 0))

    def expect(self, keys: Sequence[tuple[int, int]]) -> None:
        """Tell the source which images are read next."""
        self.source.expect([index for _, index in keys])

    def __getitem__(self, key: tuple[int, int]) -> Crops | DataError:
        """Crops of image `index` in `epoch`; `skip_bad` replaces an unreadable one by the next."""
        epoch, index = key
        rng = build_rng(self.seed, epoch, index)
        for replaced in range(len(self.source)):
            candidate = (index + replaced) % len(self.source)
            try:
                image = self.source.read(candidate, self.recipe.channels, whole=True)
                return self._cut(image, rng, replaced)
            except Unreachable as error:
                return error
            except DataError as error:
                if not self.skip_bad:
                    return DataError(f"{error}", remedy="use `on_bad_image` skip to replace it")
                logger.warning("%s; skipped", error)
        return DataError(f"none of the {len(self.source)} images can be read")

    def _cut(self, image: Tensor, rng: np.random.Generator, replaced: int) -> Crops:
        crops = cut_crops(image, self.recipe, rng, replaced, self.cut)
        return (
            crops
            if self.host_normalization is None
            else augment_crops(crops, self.host_normalization)
        )


def count_bytes(item: Sequence[Tensor]) -> int:
    """Bytes of the tensors of an item."""
    return sum(tensor.numel() * tensor.element_size() for tensor in item)


def augment_crops(crops: Crops, normalization: Normalization) -> Crops:
    """Augment one image's crops to float32 views, as the device would."""
    views = augment(
        crops.global_pixels.movedim(-1, 1), crops.global_parameters, normalization, eager=True
    )
    if not len(crops.local_pixels):
        return crops._replace(
            global_pixels=views, local_pixels=crops.local_pixels.movedim(-1, 1).float()
        )
    local = augment(
        crops.local_pixels.movedim(-1, 1), crops.local_parameters, normalization, eager=True
    )
    return crops._replace(global_pixels=views, local_pixels=local)


class LabelledBatch(NamedTuple):
    """Views (B, C, H, W) uint8, their labels (B,) and their indices in the source (B,), int64."""

    pixels: Tensor
    labels: Tensor
    indices: Tensor


class RandomViewDataset(Dataset[LabelledBatch | DataError]):
    """(epoch, index) -> a random view of an image, or the error that stops the run."""

    def __init__(
        self,
        source: ImageSource,
        cut: Callable[[Tensor, np.random.Generator], Tensor],
        *,
        channels: int,
        seed: int,
    ) -> None:
        """Store the source; nothing is read yet.

        Args:
            source: The images.
            cut: Maps (C, H, W) uint8 of any size and the image's generator to the view. It is
                pickled for the loader processes.
            channels: C.
            seed: Seed of all views.
        """
        self.source, self.cut, self.channels, self.seed = source, cut, channels, seed

    def count_bytes(self) -> int:
        """Bytes of one view."""
        blank = torch.zeros((self.channels, BLANK, BLANK), dtype=torch.uint8)
        return count_bytes([self.cut(blank, build_rng(0, 0, 0))])

    def expect(self, keys: Sequence[tuple[int, int]]) -> None:
        """Tell the source which images are read next."""
        self.source.expect([index for _, index in keys])

    def __getitem__(self, key: tuple[int, int]) -> LabelledBatch | DataError:
        """The view of image `index` in `epoch`, without the B dimension."""
        epoch, index = key
        rng = build_rng(self.seed, epoch, index)
        return _read_view(self.source, index, lambda image: self.cut(image, rng), self.channels)


class ViewDataset(Dataset[LabelledBatch | DataError]):
    """Position in this process's share -> one view of an image with its label and index."""

    def __init__(
        self,
        source: ImageSource,
        cut: Callable[[Tensor], Tensor],
        *,
        channels: int,
        share: Share,
        shapes: Sequence[Shape] | None = None,
    ) -> None:
        """Store the source; rank r of w reads images r, r + w, r + 2w, ...

        Args:
            source: The images.
            cut: Maps (C, H, W) uint8 of any size to the view, (C, H, W) uint8. It is pickled for
                the loader processes.
            channels: C.
            share: This process's share.
            shapes: (H, W) of each image's view if they differ; a new shape starts a new batch.
        """
        self.source, self.cut, self.channels, self.shapes = source, cut, channels, shapes
        self.indices = range(share.rank, len(source), share.world_size)

    def count_bytes(self) -> int:
        """Bytes of one view, the largest one if `shapes` says so."""
        if self.shapes:
            return self.channels * max(height * width for height, width in self.shapes)
        blank = torch.zeros((self.channels, BLANK, BLANK), dtype=torch.uint8)
        return count_bytes([self.cut(blank)])

    def __len__(self) -> int:
        """Images of this process."""
        return len(self.indices)

    def expect(self, keys: Sequence[int]) -> None:
        """Tell the source which images are read next."""
        self.source.expect([self.indices[position] for position in keys])

    def __getitem__(self, position: int) -> LabelledBatch | DataError:
        """One image without the B dimension, or the error that stops the run."""
        return _read_view(self.source, self.indices[position], self.cut, self.channels)

    def plan(self, batch_size: int) -> Iterator[list[int]]:
        """Yield the positions of each batch: in order, at most `batch_size`, all of one shape."""
        shapes = self.shapes
        for _, run in itertools.groupby(
            range(len(self)), lambda position: shapes and shapes[self.indices[position]]
        ):
            positions = list(run)
            for start in range(0, len(positions), batch_size):
                yield positions[start : start + batch_size]


def _read_view(
    source: ImageSource, index: int, cut: Callable[[Tensor], Tensor], channels: int
) -> LabelledBatch | DataError:
    try:
        image, label = source.read_labelled(index, channels)
        pixels = cut(image)
    except DataError as error:
        return error
    return LabelledBatch(pixels, torch.tensor(label), torch.tensor(index))
