"""Two fixed views of each of a few images, for scores that need no labels.

The views are those that training would cut and color, but from a seed of their own: they do not
depend on the run's seed, on processes or on interruptions. Shapes: N images, C channels, S side.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dino.data.crops import GLOBAL_VIEWS, CropRecipe
from dino.data.datasets import CropDataset, Share
from dino.data.image_source import ImageSource
from dino.data.loaders import read_items
from dino.data.photometric import Normalization, augment
from dino.errors import DataError

SEED = 20210429  # no usual seed, so that no run has trained on these very crops
# Area of a view as a share of the image, from easy to hard; None is that of the global crops.
AREAS: tuple[tuple[float, float] | None, ...] = (None, (0.1, 0.4), (0.05, 0.2))


class OwnViewDataset(Dataset[Tensor | DataError]):
    """Position in this process's share -> both views of an image, or the error that stops a run."""

    def __init__(
        self, source: ImageSource, recipe: CropRecipe, *, level: int, skip_bad: bool, share: Share
    ) -> None:
        """Store what to cut; nothing is read yet.

        Args:
            source: The N images.
            recipe: Training's.
            level: Index in `AREAS`.
            skip_bad: Replace an unreadable image with the next one.
            share: Rank r of w reads images r, r + w, r + 2w, ...
        """
        area = AREAS[level] or recipe.global_scale
        pair = replace(recipe, global_scale=area, local_views=0)
        self.crops = CropDataset(source, pair, seed=SEED, skip_bad=skip_bad)
        self.indices = range(share.rank, len(source), share.world_size)

    def __len__(self) -> int:
        """Images of this process."""
        return len(self.indices)

    def __getitem__(self, position: int) -> Tensor | DataError:
        """(2, C, S, S) uint8, colored and blurred."""
        crops = self.crops[0, self.indices[position]]
        if isinstance(crops, DataError):
            return crops
        channels = self.crops.recipe.channels
        levels = Normalization(mean=(0.0,) * channels, std=(1 / 255,) * channels)
        views = augment(
            crops.global_pixels.movedim(-1, 1), crops.global_parameters, levels, eager=True
        )
        return views.round().clamp(0, 255).to(torch.uint8)


def read_own_views(dataset: OwnViewDataset, *, workers: int, start: str | None) -> Tensor:
    """Cut the views of this process's share.

    Args:
        dataset: The views.
        workers: Loader processes.
        start: Their start method; None for torch's default.

    Returns:
        (n, 2, C, S, S) uint8, as many rows in every process: one with an image less than others
        has a black row at its end.

    Raises:
        DataError: An image cannot be read.
    """
    recipe, share = dataset.crops.recipe, dataset.indices.step
    rows = -(-len(dataset.crops.source) // share)
    side = recipe.global_size
    views = torch.zeros((rows, GLOBAL_VIEWS, recipe.channels, side, side), dtype=torch.uint8)
    for row, pair in enumerate(read_items(dataset, workers=workers, start=start)):
        if isinstance(pair, DataError):
            raise DataError(str(pair))
        views[row] = pair
    return views
