"""What programs hand over, as the evaluations take it: images, splits, backbones, and a run to work in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dino.data.config import DataConfig
from dino.data.decode import is_picture
from dino.data.image_source import ImageSource
from dino.data.sources import open_images, open_labelled_splits
from dino.data.user_images import UserSource, read_labels, wrap_images
from dino.devices.config import DeviceConfig, PrecisionConfig
from dino.errors import DataError
from dino.evaluation.features import Features, build_reading, extract_features
from dino.models.weights import TrainedBackbone
from dino.runtime.config import LaunchConfig
from dino.runtime.context import Run, open_run

USUAL_SIZE = 224  # side in pixels at which a foreign module is fed


def is_path(data: Any) -> bool:
    """Whether it names something on disk."""
    return isinstance(data, str | os.PathLike)


def open_source(images: Any) -> ImageSource:
    """The images of a path, or of what a program hands over.

    Raises:
        DataError: There are none.
    """
    if not is_path(images):
        return wrap_images(images)
    path = os.fspath(images)
    return wrap_images([path]) if is_picture(path) else open_images(path)


def open_splits(data: Any) -> tuple[ImageSource, ImageSource]:
    """The train and val images, with labels.

    Raises:
        DataError: There is no pair, or one has no labels.
    """
    if is_path(data):
        return open_labelled_splits(os.fspath(data))
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataError("data must be a folder with train and val, or a pair (train, val)", value=type(data).__name__)
    train, test = (_label(open_source(part), part) for part in data)
    return train, test


def _label(source: ImageSource, images: Any) -> ImageSource:
    if source.labels is None and not is_path(images):
        source = wrap_images(images, labels=read_labels(images))
    if source.labels is None:
        raise DataError(f"{source.root} has no labels", remedy="give class folders, or items (image, label)")
    return source


@contextlib.contextmanager
def open_plain_run(device: str | None, precision: str | None = None) -> Iterator[Run]:
    """A run on a device, in fp32 where nothing else is asked for.

    Raises:
        DeviceError: The device or the number format is not available here.
    """
    number_format = PrecisionConfig(precision=precision, use_fp16=False if precision is None else None)
    with open_run(DeviceConfig(device=device), LaunchConfig(), precision=number_format) as run:
        yield run


@contextlib.contextmanager
def lend(backbone: nn.Module, run: Run) -> Iterator[TrainedBackbone]:
    """A backbone as the evaluations take it; it comes back to where it was, in the mode it was in."""
    home = next((part.device for part in backbone.parameters()), torch.device("cpu"))
    was_training = backbone.training
    known = getattr(backbone, "normalization", None)
    try:
        yield TrainedBackbone(
            module=backbone.eval(),
            arch=str(getattr(backbone, "arch", type(backbone).__name__)),
            patch_size=int(getattr(backbone, "patch_size", 1)),
            image_size=int(getattr(backbone, "image_size", USUAL_SIZE)),
            in_chans=int(getattr(backbone, "in_chans", 3)),
            normalisation=known and {"mean": list(known.mean), "std": list(known.std)},
        )
    finally:
        backbone.to(home).train(was_training)


class InFormat(nn.Module):
    """A module that computes in the run's number format."""

    def __init__(self, module: nn.Module, run: Run) -> None:
        """Keep both."""
        super().__init__()
        self.module, self.autocast = module, run.device.autocast

    def forward(self, images: Tensor) -> Tensor:
        """What the module gives."""
        with self.autocast():
            return cast(Tensor, self.module(images))


def extract(
    backbone: nn.Module,
    sources: Sequence[ImageSource],
    run: Run,
    *,
    batch_size: int,
    num_workers: int | None,
    normalize: bool,
) -> list[Features]:
    """Features of each source, one after the other."""
    with lend(backbone, run) as trained:
        described = replace(trained, module=InFormat(backbone, run))
        found = []
        for source in sources:
            workers = 0 if num_workers is None and isinstance(source, UserSource) else num_workers
            data = DataConfig(batch_size_per_device=batch_size, num_workers=workers)
            reading = build_reading(data, run, keep_on_device=True)
            found.append(extract_features(described, source, run, reading, normalise=normalize))
        return found
