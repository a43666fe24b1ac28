"""Random batches, for measuring a device without reading images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino.data.crops import CropRecipe, Crops, ViewRecipe, draw_parameters
from dino.data.image_source import ImageSource
from dino.data.photometric import PARAMETERS

IMAGENET = 1281167  # training images of ImageNet, for epochs of the same length


def make_synthetic_source(count: int) -> ImageSource:
    """A list of `count` images without files."""
    return ImageSource(root=Path("synthetic data"), names=("",) * count)


class SyntheticLoader:
    """Stands in for a training loader: repeats one batch that was made on the device."""

    workers = 0

    def __init__(self, batch: Crops, batches: int) -> None:
        """Yield `batch` `batches` times per epoch."""
        self.batch, self.batches = batch, batches

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return self.batches

    def read(self, epoch: int, start: int = 0) -> Iterator[Crops]:
        """Yield the batches of an epoch from `start` on."""
        yield from (self.batch for _ in range(start, self.batches))


def make_batch(
    recipe: CropRecipe,
    batch_size: int,
    *,
    seed: int,
    device: torch.device,
    to_device: Callable[[Any], Any],
) -> Crops:
    """Draw random pixels on the device, and parameters as the loaders draw them.

    Args:
        recipe: Which views to make.
        batch_size: B.
        seed: Seed of pixels and parameters; the pixels also depend on the device.
        device: Where the pixels are drawn.
        to_device: Moves the drawn parameters there.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    def draw(views: tuple[ViewRecipe, ...], size: int) -> tuple[Tensor, Tensor]:
        parameters = draw_parameters(views * batch_size, rng).reshape(
            batch_size, len(views), PARAMETERS
        )
        shape = (batch_size, len(views), size, size, recipe.channels)
        pixels = (torch.rand(shape, device=device) * 256).to(torch.uint8)
        return pixels, to_device(torch.from_numpy(parameters))

    global_views = draw(recipe.global_recipes(), recipe.global_size)
    local_views = draw(recipe.local_recipes(), recipe.local_size)
    return Crops(*global_views, *local_views, torch.zeros(batch_size, dtype=torch.int64))
