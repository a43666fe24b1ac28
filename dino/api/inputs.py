"""Prepare the arguments of the Python API: images, splits, backbones and a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dino.config import build, expand_home
from dino.data.config import DataConfig
from dino.data.decode import is_picture
from dino.data.image_source import ImageSource, number_classes
from dino.data.photometric import Normalization
from dino.data.sources import open_images, open_labelled_splits
from dino.data.user_images import UserSource, read_labels, wrap_images
from dino.devices.config import DeviceConfig, PrecisionConfig
from dino.errors import DataError
from dino.evaluation.config import VoteConfig
from dino.evaluation.features import Features, build_loader_config, extract_features
from dino.runtime.config import LaunchConfig
from dino.runtime.context import Run, open_run
from dino.visualization.config import PictureConfig
from dino.weights.load import TrainedBackbone

USUAL_SIZE = 224  # side in pixels of the images for a module without `image_size`


@dataclass(frozen=True, kw_only=True)
class FrozenSettings:
    """Settings of the functions on a frozen backbone, validated like the flags of a command."""

    device: DeviceConfig = DeviceConfig()
    precision: PrecisionConfig = PrecisionConfig()
    data: DataConfig = DataConfig(batch_size_per_device=128)
    vote: VoteConfig = VoteConfig()
    pictures: PictureConfig = PictureConfig()


def check_settings(**settings: Any) -> FrozenSettings:
    """Build settings from keywords.

    Raises:
        OptionError: A value has the wrong type or is out of range.
    """
    return build(FrozenSettings, settings)


def refuse_made(function: str, settings: Collection[str], names: Collection[str]) -> None:
    """Refuse the flags of a command that a function takes as its first arguments.

    Raises:
        TypeError: One of `names` is among the settings.
    """
    for name in settings:
        if name in names:
            raise TypeError(
                f"{function}() takes no keyword {name!r}: its first arguments replace it"
            )


def is_path(data: Any) -> bool:
    """Whether `data` is a path."""
    return isinstance(data, str | os.PathLike)


def open_source(images: Any) -> ImageSource:
    """Open the images at a path, or wrap images in memory.

    Raises:
        DataError: There are no images.
    """
    if not is_path(images):
        return wrap_images(images)
    path = expand_home(os.fspath(images))
    is_one_picture = is_picture(path) and not os.path.isdir(path)
    return wrap_images([path]) if is_one_picture else open_images(path)


def open_splits(data: Any) -> tuple[ImageSource, ImageSource]:
    """Open the train and val images, with labels of the same classes.

    Raises:
        DataError: A split is missing or has no labels, or the classes of the splits differ.
    """
    if is_path(data):
        return open_labelled_splits(expand_home(os.fspath(data)))
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataError(
            "data must be a folder with train and val, or a pair (train, val) "
            f"(got {type(data).__name__})",
            value=data,
        )
    train, test = (_label(open_source(images), images) for images in data)
    return _agree(train, test)


def _label(source: ImageSource, images: Any) -> ImageSource:
    if source.labels is None and not is_path(images):
        labels = read_labels(images)
        source = source if labels is None else wrap_images(images, labels=labels)
    if source.labels is None:
        raise DataError(
            f"{source.root} has no labels",
            remedy="give class folders, or items (image, label) with whole numbers",
        )
    return source


def _agree(train: ImageSource, test: ImageSource) -> tuple[ImageSource, ImageSource]:
    """Give both splits the same classes: their shared names, or as many as there are labels."""
    assert train.labels is not None and test.labels is not None
    if train.classes and test.classes:
        if train.classes != test.classes:
            different = sorted(set(train.classes) ^ set(test.classes)) or ["their order"]
            raise DataError(
                "train and val must have the same classes; "
                f"they differ in {', '.join(different[:5])}"
            )
        return train, test
    numbers = number_classes((*train.labels, *test.labels))
    named = train.classes or test.classes
    classes = named if len(named) >= len(numbers) else numbers
    return replace(train, classes=classes), replace(test, classes=classes)


@contextlib.contextmanager
def open_frozen_run(device: DeviceConfig, precision: PrecisionConfig) -> Iterator[Run]:
    """Open a run for a frozen network, in fp32 by default. The host's random state is preserved.

    Raises:
        DeviceError: The device or the number format is not available.
    """
    chosen = None if precision.precision is None else replace(precision, compile=False)
    with (
        torch.random.fork_rng(devices=[]),
        open_run(device, LaunchConfig(), precision=chosen) as run,
    ):
        yield run


@contextlib.contextmanager
def lend(backbone: nn.Module, run: Run) -> Iterator[TrainedBackbone]:
    """Lend a backbone to an evaluation, on the host, and restore its device and mode afterwards."""
    home = next((weight.device for weight in backbone.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in backbone.modules()}
    try:
        yield describe(backbone.cpu().eval())
    finally:
        backbone.to(home)
        for module, was_training in modes.items():
            module.training = was_training


def describe(backbone: nn.Module) -> TrainedBackbone:
    """Describe a module by the attributes that `load` gives it, or by usual values."""
    normalization = getattr(backbone, "normalization", None)
    return TrainedBackbone(
        module=backbone,
        arch=str(getattr(backbone, "arch", type(backbone).__name__)),
        patch_size=_number(backbone, "patch_size", 1),
        image_size=_number(backbone, "image_size", USUAL_SIZE),
        in_chans=_number(backbone, "in_chans", 3),
        normalization={"mean": [*normalization.mean], "std": [*normalization.std]}
        if isinstance(normalization, Normalization)
        else None,
        pixel_range=getattr(backbone, "pixel_range", None),
    )


def _number(backbone: nn.Module, name: str, usual: int) -> int:
    """Return an int attribute of a module, or `usual`: in a foreign module it can be anything."""
    value = getattr(backbone, name, usual)
    return value if isinstance(value, int) else usual


class InFormat(nn.Module):
    """A module that computes in the run's number format."""

    def __init__(self, module: nn.Module, run: Run) -> None:
        """Store both, and pass on the module's `embed_dim`."""
        super().__init__()
        self.module, self.autocast = module, run.device.autocast
        self.embed_dim = getattr(module, "embed_dim", None)

    def forward(self, images: Tensor) -> Tensor:
        """Return the module's output.

        Raises:
            TypeError: The output is not a tensor.
        """
        with self.autocast():
            output = self.module(images)
        if not isinstance(output, Tensor):
            raise TypeError(f"a backbone must return a tensor (B, D) (got {type(output).__name__})")
        return output


def extract(
    backbone: nn.Module,
    sources: Sequence[ImageSource],
    run: Run,
    data: DataConfig,
    *,
    normalize: bool,
) -> list[Features]:
    """Extract the features of each source. By default images in memory get no loader processes."""
    with lend(backbone, run) as trained:
        described = replace(trained, module=InFormat(backbone, run))
        features = []
        for source in sources:
            in_memory = isinstance(source, UserSource) and source.in_memory
            no_workers = in_memory and data.num_workers is None
            loader = build_loader_config(
                replace(data, num_workers=0) if no_workers else data, run, keep_on_device=True
            )
            features.append(extract_features(described, source, run, loader, normalize=normalize))
        return features
