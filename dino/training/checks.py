"""Wrong input stops here, in one line, before anything is built."""

from __future__ import annotations

import logging
import os

from dino.data.image_source import ImageSource
from dino.data.loaders import check_count
from dino.data.sources import open_online_splits, open_training_source
from dino.data.synthetic import IMAGENET, make_synthetic_source
from dino.devices.base import Device
from dino.errors import OptionError
from dino.models.registry import check_arch, is_vit
from dino.runtime.context import make_output_folder
from dino.runtime.distributed import read_launch
from dino.training.config import RunConfig, TrainConfig

logger = logging.getLogger(__name__)


def check_options(config: TrainConfig, source: ImageSource | None = None) -> ImageSource:
    """Check every option against itself, the others and the images.

    Args:
        config: The run's settings.
        source: The images; by default those of `data_path`.

    Returns:
        The images to train on.

    Raises:
        DinoError: What is wrong, where, and what to do.
    """
    check_settings(config)
    source = check_images(config, source)
    make_output_folder(config.run.output_dir)
    return source


def check_settings(config: TrainConfig) -> None:
    """Check every option against itself and the others.

    Raises:
        OptionError: What is wrong, and what to do.
    """
    check_arch(config.backbone.chosen_arch)
    check_scales(config)
    check_sizes(config)
    check_warmups(config)


def check_images(config: TrainConfig, source: ImageSource | None = None) -> ImageSource:
    """List the images, and check that there are enough.

    Raises:
        DataError: There are none, or too few.
    """
    source = source or open_source(config)
    if config.run.eval_knn_every:
        open_online_splits(config.data.data_path, config.train_data.data_limit)
    batch = (
        config.data.batch_size_per_device
        * config.run.accumulate_steps
        * read_launch(os.environ).world_size
    )
    check_count(source, batch)
    return source


def open_source(config: TrainConfig) -> ImageSource:
    """The images to train on, or as many that do not exist.

    Raises:
        DataError: No path, a path that does not exist, or no image in it.
        OptionError: Both images and none, or none and a score of them.
    """
    if not config.train_data.synthetic_data:
        return open_training_source(config.data.data_path, config.train_data.data_limit)
    if config.data.data_path:
        raise OptionError(
            "`synthetic_data` and `data_path` contradict each other", remedy="give one of them"
        )
    if config.run.eval_knn_every:
        raise OptionError(
            "`eval_knn_every` scores images, and `synthetic_data` reads none",
            remedy="leave one of them out",
        )
    return make_synthetic_source(config.train_data.data_limit or IMAGENET)


def check_scales(config: TrainConfig) -> None:
    """The areas of crops are ranges.

    Raises:
        OptionError: One is not.
    """
    for name in ("global_crops_scale", "local_crops_scale"):
        low, high = getattr(config.crops, name)
        if not 0 < low <= high <= 1:
            raise OptionError(
                f"`{name}` {low} {high} is no range of areas",
                remedy="give two numbers above 0, at most 1, rising",
            )


def check_sizes(config: TrainConfig) -> None:
    """Crops hold at least one patch; a size that patches do not fill is used and named.

    Raises:
        OptionError: A crop smaller than a patch.
    """
    if not is_vit(config.backbone.chosen_arch):
        return
    patch = config.backbone.chosen_patch_size
    for name in ("global_crops_size", "local_crops_size")[
        : 1 + (config.crops.local_crops_number > 0)
    ]:
        size = getattr(config.crops, name)
        if size < patch:
            raise OptionError(
                f"`{name}` {size} is less than `patch_size` {patch}",
                value=size,
                remedy=f"make it a multiple of {patch}",
            )
        if size % patch:
            filled = size - size % patch
            logger.warning(
                "`%s` %d: patches of %d fill only %d pixels of it", name, size, patch, filled
            )


def check_warmups(config: TrainConfig) -> None:
    """A warm-up that is given must fit into the run; the default one is shortened when the run is planned.

    Raises:
        OptionError: It does not fit.
    """
    for name, value in (
        ("warmup_epochs", config.optim.warmup_epochs),
        ("warmup_teacher_temp_epochs", config.teacher.warmup_teacher_temp_epochs),
    ):
        if value is not None and value > config.run.epochs:
            raise OptionError(
                f"`{name}` {value} is longer than the run of `epochs` {config.run.epochs}",
                value=value,
                remedy="lower the one or raise the other",
            )


def check_device(config: TrainConfig, device: Device) -> None:
    """The device can do all that is asked.

    Raises:
        OptionError: It cannot; the text says what to do instead.
    """
    values, usual = vars(config.run), vars(RunConfig())
    for name, remedy in device.refused.items():
        if values[name] != usual[name]:
            raise OptionError(
                f"`{name}` is not there on `device` {device.name}",
                value=values[name],
                remedy=remedy,
            )
