"""Batches of pixels that nobody photographed: what a device can do when nothing has to be read."""

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

IMAGENET = 1281167  # images of its training set, so that an epoch is as long


def make_synthetic_source(count: int) -> ImageSource:
    """A list of `count` images that no file holds."""
    return ImageSource(root=Path("synthetic data"), names=("",) * count)


class SyntheticLoader:
    """In place of a training loader: one batch, made once where it is used, over and over."""

    workers = 0

    def __init__(self, batch: Crops, batches: int) -> None:
        """Give `batch` so many times an epoch."""
        self.batch, self.batches = batch, batches

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.batches

    def read(self, epoch: int, start: int = 0) -> Iterator[Crops]:
        """Yield the rest of an epoch from `start` on."""
        yield from (self.batch for _ in range(start, self.batches))


def make_batch(
    recipe: CropRecipe,
    batch_size: int,
    *,
    seed: int,
    device: torch.device,
    to_device: Callable[[Any], Any],
) -> Crops:
    """Draw pixels on the device, and what is to be done with each view as the loaders draw it.

    Args:
        recipe: Which views.
        batch_size: B.
        seed: Of all of it; the pixels also depend on the device.
        device: Where the pixels are drawn.
        to_device: Brings the drawn parameters there.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    def draw(views: tuple[ViewRecipe, ...], size: int) -> tuple[Tensor, Tensor]:
        parameters = draw_parameters(views * batch_size, rng).reshape(
            batch_size, len(views), PARAMETERS
        )
        shape = (batch_size, len(views), size, size, recipe.channels)
        return (torch.rand(shape, device=device) * 256).to(torch.uint8), to_device(
            torch.from_numpy(parameters)
        )

    global_views = draw(recipe.global_recipes(), recipe.global_size)
    local_views = draw(recipe.local_recipes(), recipe.local_size)
    return Crops(*global_views, *local_views, torch.zeros(batch_size, dtype=torch.int64))
