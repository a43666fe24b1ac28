"""Scores of a backbone without labels: own-view retrieval, and the effective rank of its features.

Shapes: N images with two views each, B views in a batch, C channels, S side, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.data.crops import GLOBAL_VIEWS, CropRecipe
from dino.data.image_source import ImageSource
from dino.data.own_views import OwnViewDataset, read_own_views
from dino.data.photometric import Normalization
from dino.evaluation.features import LoaderConfig, share_of
from dino.runtime.context import Run

RANKME_EPSILON = 1e-7  # the paper's


def score_retrieval(features: Tensor) -> float:
    """How many views find the other view of their image, in %.

    A view finds the one with the largest cosine similarity among all other views of all images.

    Args:
        features: (N, 2, D) float32.
    """
    views = F.normalize(features.flatten(0, 1), dim=-1)
    found = (views @ views.T).fill_diagonal_(-torch.inf).argmax(dim=1)
    own = torch.arange(len(views)) ^ 1  # views 2i and 2i + 1 belong together
    return 100.0 * (found == own).float().mean().item()


def compute_rankme(features: Tensor) -> float:
    """Effective rank of a matrix of features (RankMe; Garrido et al., 2023, equations 1 and 2).

    The exponential of the entropy of the singular values, which are scaled to a sum of 1. It is at
    most the smaller side of the matrix, so only values of the same matrix size compare.

    Args:
        features: (N, D), neither centered nor normalized.

    Returns:
        1 to min(N, D) up to rounding; NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return float("nan")
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + RANKME_EPSILON
    return float((-(shares * shares.log()).sum()).exp())


class OwnViews:
    """Scores a backbone on fixed views of fixed images; the views are cut once and kept."""

    def __init__(
        self,
        source: ImageSource,
        recipe: CropRecipe,
        run: Run,
        reading: LoaderConfig,
        *,
        normalization: Normalization,
        skip_bad: bool = False,
    ) -> None:
        """Store what to score on; nothing is read yet.

        Args:
            source: The N images.
            recipe: Training's crops.
            run: Device and processes. Each process runs its share of the images.
            reading: Batch size B and loader processes.
            normalization: Mean and standard deviation.
            skip_bad: Replace an unreadable image with the next one.
        """
        self.source, self.recipe, self.run, self.reading = source, recipe, run, reading
        self.normalization, self.skip_bad = normalization, skip_bad
        self.views: dict[int, Tensor] = {}  # of the level in use

    def __call__(self, backbone: nn.Module, level: int) -> Mapping[str, float]:
        """Return `own_view` in % and `rankme`, equal on every process.

        Args:
            backbone: Maps (B, C, S, S) to (B, D); its modules are in eval mode afterwards.
            level: How hard the views are, an index in `data.own_views.AREAS`.

        Raises:
            DataError: An image cannot be read.
        """
        features = self._embed(backbone, level)
        return {
            "own_view": score_retrieval(features),
            "rankme": compute_rankme(features.flatten(0, 1)),
        }

    def _embed(self, backbone: nn.Module, level: int) -> Tensor:
        """(N, 2, D) float32 in host memory, in the order of the images."""
        device, views = self.run.device, self._cut(level).flatten(0, 1)
        self.run.processes.phase = "own-view score"
        infer = device.compile_eval(backbone)
        size = min(self.reading.batch_size, len(views))
        missing = -len(views) % size  # one batch size is one graph on devices that compile
        batches = torch.split(F.pad(views, (*(0, 0) * 3, 0, missing)), size)
        rows = [infer(self.normalization(device.to_device(batch))).float() for batch in batches]
        features = torch.cat(rows)[: len(views)]
        pairs = features.reshape(-1, GLOBAL_VIEWS, features.shape[-1])
        return self.run.processes.gather_rows(pairs, len(self.source)).cpu()

    def _cut(self, level: int) -> Tensor:
        if level not in self.views:
            dataset = OwnViewDataset(
                self.source,
                self.recipe,
                level=level,
                skip_bad=self.skip_bad,
                share=share_of(self.run),
            )
            start = self.run.device.loader_start
            self.views = {level: read_own_views(dataset, workers=self.reading.workers, start=start)}
        return self.views[level]
