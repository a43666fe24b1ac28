"""Reject wrong input with a one-line error before anything is built."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from dino import checkpoint
from dino.data.crops import GLOBAL_VIEWS
from dino.data.image_source import ImageSource
from dino.data.levels import check_range
from dino.data.sources import open_online_splits, open_training_source
from dino.data.start_checks import check_count
from dino.data.synthetic import IMAGENET, make_synthetic_source
from dino.devices.base import Device
from dino.errors import OptionError
from dino.models.probe import Probe, check_depth
from dino.models.registry import check_arch, is_vit
from dino.runtime.context import make_output_folder
from dino.runtime.launch import read_launch
from dino.runtime.ownership import check_recipe, foreign
from dino.runtime.sinks import check_names
from dino.training.choices import AUTO
from dino.training.config import RunConfig, TrainConfig

logger = logging.getLogger(__name__)


def check_options(config: TrainConfig, source: ImageSource | None = None) -> ImageSource:
    """Check every setting by itself, against the others and against the images.

    Args:
        config: The run's settings.
        source: The images; defaults to those in `data_path`.

    Returns:
        The images to train on.

    Raises:
        DinoError: A setting is wrong; the message says which one and what to do.
    """
    if config.run.hours is None:  # else `fit_hours` checks what it chooses
        check_settings(config)
    source = check_images(config, source)
    check_folder(make_output_folder(config.run.output_dir))
    return source


def check_folder(folder: Path) -> None:
    """Check that the run will replace no file but its own.

    Raises:
        OptionError: A file that it writes is the user's, or of another run.
    """
    check_recipe(folder)
    numbered = sorted(folder.glob("checkpoint[0-9]*.pth"))
    names = (checkpoint.TEACHER, checkpoint.TEACHER_TENSORS, checkpoint.BEST)
    earlier = [*(folder / name for name in names), *numbered]
    other = next((path for path in earlier if path.exists()), None)
    if other is not None and not checkpoint.is_begun(folder):
        raise foreign(other, "is of another run")


def check_settings(config: TrainConfig) -> None:
    """Check every setting by itself and against the others.

    Raises:
        OptionError: A setting is wrong; the message says what to do.
    """
    check_arch(config.backbone.chosen_arch)
    check_range(config.train_data.pixel_range)
    check_pixels(config)
    check_scales(config)
    check_sizes(config)
    check_warmups(config)
    check_network(config)
    check_best(config)
    check_names(config.run.log_to)


def check_pixels(config: TrainConfig) -> None:
    """Check that mean and standard deviation have a number for each channel.

    Raises:
        OptionError: They do not, a number is not finite, or a deviation is not above 0.
    """
    channels = config.student.chosen_in_chans
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        value = getattr(config.train_data, name)
        if value is None:
            continue
        if value == AUTO:
            raise OptionError(f"`{name}` auto needs images", remedy="give numbers")
        if len(value) != channels or not all(least < part < math.inf for part in value):
            raise OptionError(
                f"`{name}` must be {channels} finite number{'s' * (channels > 1)}"
                f"{' above 0' * (least == 0)}, one per channel"
                f" (got {','.join(f'{part:g}' for part in value)})",
                value=value,
                remedy="levels count from 0 to 1; auto measures them",
            )


def check_images(config: TrainConfig, source: ImageSource | None = None) -> ImageSource:
    """List the images, say which they are, and check that there are enough.

    Raises:
        DataError: There are no images, or too few.
    """
    source = source or open_source(config)
    logger.info("source: %s", source.describe())
    if config.run.eval_knn_every:
        _, test = open_online_splits(config.data.data_path, config.train_data.data_limit)
        logger.info("source of the k-NN score: %s", test.describe())
    batch = (
        config.data.batch_size_per_device
        * config.run.accumulate_steps
        * read_launch(os.environ).world_size
    )
    check_count(source, batch)
    return source


def open_source(config: TrainConfig) -> ImageSource:
    """Open the images to train on, or a synthetic source of the same length.

    Raises:
        DataError: The path is missing, does not exist, or holds no image.
        OptionError: `synthetic_data` is combined with `data_path` or `eval_knn_every`.
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
    """Check that the crop scales are ranges of areas.

    Raises:
        OptionError: A scale is not a range within 0 to 1.
    """
    for name in ("global_crops_scale", "local_crops_scale"):
        low, high = getattr(config.crops, name)
        if not 0 < low <= high <= 1:
            raise OptionError(
                f"`{name}` must be two rising numbers above 0 and at most 1 (got {low} {high})",
                remedy="give the smallest area first, then the largest",
            )


def check_sizes(config: TrainConfig) -> None:
    """Check that crops hold at least one patch; warn about sizes that patches do not fill.

    Raises:
        OptionError: A crop is smaller than a patch.
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
                f"`{name}` must be at least `patch_size` {patch} (got {size})",
                value=size,
                remedy=f"make it a multiple of {patch}",
            )
        if size % patch:
            filled = size - size % patch
            logger.warning(
                "`%s` %d: patches of %d fill only %d pixels of it", name, size, patch, filled
            )


def check_network(config: TrainConfig) -> None:
    """Check that a network of timm or torchvision trains on the crops; one of ours always does.

    Raises:
        OptionError: It does not, or it has no stochastic depth for a `drop_path_rate`.
    """
    arch, crops, in_chans = (
        config.backbone.chosen_arch,
        config.crops,
        config.student.chosen_in_chans,
    )
    if is_vit(arch):
        return
    # Batch norm is over all processes.
    images = config.data.batch_size_per_device * read_launch(os.environ).world_size
    probe = Probe(arch, in_chans=in_chans)
    probe.check_pass(GLOBAL_VIEWS * images, crops.global_crops_size)
    if crops.local_crops_number:
        probe.check_pass(crops.local_crops_number * images, crops.local_crops_size)
    if rate := config.student.drop_path_rate:
        check_depth(arch, rate, in_chans=in_chans, side=crops.global_crops_size)


def check_warmups(config: TrainConfig) -> None:
    """Check that explicit warm-ups fit into the run; `build_plan` shortens a default one.

    Raises:
        OptionError: A warm-up is longer than the run.
    """
    for name, value in (
        ("warmup_epochs", config.optim.warmup_epochs),
        ("warmup_teacher_temp_epochs", config.teacher.warmup_teacher_temp_epochs),
    ):
        if value is not None and value > config.run.epochs:
            raise OptionError(
                f"`{name}` {value} is longer than the run of `epochs` {config.run.epochs}",
                value=value,
                remedy=f"lower `{name}` or raise `epochs`",
            )


def check_best(config: TrainConfig) -> None:
    """Check that the score of `keep_best` is computed.

    Raises:
        OptionError: It is off.
    """
    run, synthetic = config.run, config.train_data.synthetic_data
    if run.keep_best == "knn" and not run.eval_knn_every:
        raise OptionError(
            "`keep_best` knn needs the k-NN score, and `eval_knn_every` is 0",
            remedy="set `eval_knn_every`, or use `keep_best` own_view, which needs no labels",
        )
    if run.keep_best == "own_view" and (synthetic or not run.own_view_images):
        off = "`synthetic_data` has no images" if synthetic else "`own_view_images` is 0"
        raise OptionError(
            f"`keep_best` own_view needs the own-view score, and {off}", remedy="leave one out"
        )


def check_device(config: TrainConfig, device: Device) -> None:
    """Check that the device supports all settings of the run.

    Raises:
        OptionError: It does not support one; the message says what to do instead.
    """
    values, usual = vars(config.run), vars(RunConfig())
    if config.run.keep_best and not device.scores_in_training:
        raise OptionError(
            f"`keep_best` needs scores during training, and `device` {device.name} has none",
            remedy="score the checkpoints with eval_knn.py",
        )
    for name, remedy in device.refused.items():
        if values[name] != usual[name]:
            raise OptionError(
                f"`{name}` is not supported on `device` {device.name}",
                value=values[name],
                remedy=remedy,
            )
