"""What programs hand over, as the evaluations take it: images, splits, backbones, and a run to work in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dino.config import build
from dino.data.config import DataConfig
from dino.data.decode import is_picture
from dino.data.image_source import ImageSource
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

USUAL_SIZE = 224  # side in pixels at which a foreign module is fed


@dataclass(frozen=True, kw_only=True)
class FrozenSettings:
    """What functions of a frozen backbone ask; their keywords are checked as a command's flags are."""

    device: DeviceConfig = DeviceConfig()
    precision: PrecisionConfig = PrecisionConfig()
    data: DataConfig = DataConfig(batch_size_per_device=128)
    vote: VoteConfig = VoteConfig()
    pictures: PictureConfig = PictureConfig()


def check_settings(**settings: Any) -> FrozenSettings:
    """Keywords as settings.

    Raises:
        OptionError: A value is of another type, or out of its limits.
    """
    return build(FrozenSettings, settings)


def refuse_made(function: str, settings: Collection[str], names: Collection[str]) -> None:
    """Refuse keywords that a command has as flags, and a function as its first arguments.

    Raises:
        TypeError: The first one.
    """
    for name in settings:
        if name in names:
            raise TypeError(f"{function}() takes no keyword {name!r}: its first arguments say it")


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
    return (
        wrap_images([path]) if is_picture(path) and not os.path.isdir(path) else open_images(path)
    )


def open_splits(data: Any) -> tuple[ImageSource, ImageSource]:
    """The train and val images, with labels of the same classes.

    Raises:
        DataError: There is no pair, one has no labels, or their classes differ.
    """
    if is_path(data):
        return open_labelled_splits(os.fspath(data))
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataError(
            f"data must be a folder with train and val, or a pair (train, val) (got {type(data).__name__})",
            value=data,
        )
    train, test = (_label(open_source(part), part) for part in data)
    return _agree(train, test)


def _label(source: ImageSource, images: Any) -> ImageSource:
    if source.labels is None and not is_path(images):
        found = read_labels(images)
        source = source if found is None else wrap_images(images, labels=found)
    if source.labels is None:
        raise DataError(
            f"{source.root} has no labels",
            remedy="give class folders, or items (image, label) with whole numbers",
        )
    return source


def _agree(train: ImageSource, test: ImageSource) -> tuple[ImageSource, ImageSource]:
    """Both with the same classes: by their names where both have names, else as many as there are numbers."""
    assert train.labels is not None and test.labels is not None
    if train.classes and test.classes:
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes)) or ["their order"]
            raise DataError(
                f"train and val do not have the same classes; they differ in {', '.join(odd[:5])}"
            )
        return train, test
    count = max(*train.labels, *test.labels) + 1
    named = train.classes or test.classes
    classes = named if len(named) >= count else tuple(map(str, range(count)))
    return replace(train, classes=classes), replace(test, classes=classes)


@contextlib.contextmanager
def open_frozen_run(device: DeviceConfig, precision: PrecisionConfig) -> Iterator[Run]:
    """A run that trains no network, in fp32 where nothing else is asked for; the host's random numbers stay.

    Raises:
        DeviceError: The device or the number format is not available here.
    """
    other = None if precision.precision is None else replace(precision, compile=False)
    with (
        torch.random.fork_rng(devices=[]),
        open_run(device, LaunchConfig(), precision=other) as run,
    ):
        yield run


@contextlib.contextmanager
def lend(backbone: nn.Module, run: Run) -> Iterator[TrainedBackbone]:
    """A backbone as the evaluations take it, on the host; it comes back to where it was, in the mode it was in."""
    home = next((part.device for part in backbone.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in backbone.modules()}
    known = getattr(backbone, "normalization", None)
    try:
        yield TrainedBackbone(
            module=backbone.cpu().eval(),
            arch=str(getattr(backbone, "arch", type(backbone).__name__)),
            patch_size=_number(backbone, "patch_size", 1),
            image_size=_number(backbone, "image_size", USUAL_SIZE),
            in_chans=_number(backbone, "in_chans", 3),
            normalization={"mean": [*known.mean], "std": [*known.std]}
            if isinstance(known, Normalization)
            else None,
        )
    finally:
        backbone.to(home)
        for module, was_training in modes.items():
            module.training = was_training


def _number(backbone: nn.Module, name: str, usual: int) -> int:
    """An attribute of a module that may be anybody's: what is no whole number there means something else."""
    value = getattr(backbone, name, usual)
    return value if isinstance(value, int) else usual


class InFormat(nn.Module):
    """A module that computes in the run's number format."""

    def __init__(self, module: nn.Module, run: Run) -> None:
        """Keep both; the width of the features stays known."""
        super().__init__()
        self.module, self.autocast = module, run.device.autocast
        self.embed_dim = getattr(module, "embed_dim", None)

    def forward(self, images: Tensor) -> Tensor:
        """What the module gives.

        Raises:
            TypeError: It is no tensor.
        """
        with self.autocast():
            found = self.module(images)
        if not isinstance(found, Tensor):
            raise TypeError(f"a backbone must give a tensor (B, D) (got {type(found).__name__})")
        return found


def extract(
    backbone: nn.Module,
    sources: Sequence[ImageSource],
    run: Run,
    data: DataConfig,
    *,
    normalize: bool,
) -> list[Features]:
    """Features of each source, one after the other; no loader processes for what is in memory, unless asked for."""
    with lend(backbone, run) as trained:
        described = replace(trained, module=InFormat(backbone, run))
        found = []
        for source in sources:
            idle = data.num_workers is None and isinstance(source, UserSource) and source.in_memory
            reading = build_loader_config(
                replace(data, num_workers=0) if idle else data, run, keep_on_device=True
            )
            found.append(extract_features(described, source, run, reading, normalize=normalize))
        return found
