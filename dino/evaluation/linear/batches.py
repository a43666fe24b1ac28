"""Training batches of a linear layer: augmented images described per step, or cached features."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dino.data.crops import random_resized_crop
from dino.data.datasets import RandomViewDataset
from dino.data.epoch_batches import EpochBatches
from dino.data.image_source import ImageSource
from dino.data.loaders import build_train_loader
from dino.data.photometric import build_normalization
from dino.evaluation.features import Features, LoaderConfig, extract_features, share_of
from dino.runtime.agreement import check_images
from dino.runtime.context import Run
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)


class Batches(Protocol):
    """Batches of one process, epoch by epoch, with fixed shapes."""

    def __len__(self) -> int:
        """Return the number of batches per epoch."""

    def read(self, epoch: int) -> Iterator[Any]:
        """Yield tuples that begin with inputs (B, ...) and labels (B,)."""


class TrainBatches(NamedTuple):
    """The batches, and the function from their inputs to features (B, D) on the device."""

    batches: Batches
    extract: Callable[[Tensor], Tensor]


class CachedBatches:
    """Features computed once, in the order in which `TrainLoader` reads their images."""

    def __init__(self, features: Features, batches: EpochBatches) -> None:
        """Store them in host memory."""
        self.features, self.batches = features, batches

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.batches)

    def read(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (B, D) and labels (B,), batch by batch."""
        self.batches.begin(epoch)
        for batch in self.batches:
            rows = torch.tensor([index for _, index in batch])
            yield self.features.features[rows], self.features.labels[rows]


def cache_lessons(
    descriptor: TrainedBackbone, source: ImageSource, run: Run, reading: LoaderConfig, *, seed: int
) -> TrainBatches:
    """Extract the features of every image's center crop once.

    Raises:
        DataError: An image cannot be decoded.
    """
    features = extract_features(descriptor, source, run, reading, normalize=False)
    logger.info("features kept in host memory: %.3g GB", 4 * features.features.numel() / 1e9)
    batches = EpochBatches(len(source), reading.batch_size, seed=seed, share=share_of(run))
    return TrainBatches(CachedBatches(features, batches), lambda rows: rows)


def open_lessons(
    descriptor: TrainedBackbone, source: ImageSource, run: Run, reading: LoaderConfig, *, seed: int
) -> TrainBatches:
    """Cut new random views of every image in each epoch, and extract their features at each step.

    Raises:
        DataError: There are fewer images than one global batch.
    """
    check_images(run.processes, source)
    cut = functools.partial(random_resized_crop, size=descriptor.image_size)
    loader = build_train_loader(
        RandomViewDataset(
            source.ranged(descriptor.pixel_range), cut, channels=descriptor.in_chans, seed=seed
        ),
        batch_size=reading.batch_size,
        share=share_of(run),
        workers=reading.workers,
        pin_memory=run.device.pins_memory,
        start=run.device.loader_start,
        processes_here=run.processes.local_world_size,
    )
    infer = run.device.compile_eval(descriptor.module)
    normalization = build_normalization(descriptor.in_chans, descriptor.normalization)
    return TrainBatches(loader, lambda pixels: infer(normalization(pixels)).float())
