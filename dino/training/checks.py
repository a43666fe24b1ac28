"""Wrong input stops here, in one line, before anything is built."""

from __future__ import annotations

import logging

from dino.data.sources import ImageSource, open_online_splits, open_training_source
from dino.errors import DataError, OptionError
from dino.flags import TrainOptions
from dino.models.registry import check_arch, is_vit
from dino.runtime.context import make_output_folder

logger = logging.getLogger(__name__)


def check_options(options: TrainOptions) -> ImageSource:
    """Check every option against itself, the others and the images.

    Returns:
        The images to train on.

    Raises:
        DinoError: What is wrong, where, and what to do.
    """
    check_arch(options.backbone.arch)
    check_numbers(options)
    check_sizes(options)
    check_warmups(options)
    source = open_training_source(options.data.data_path, options.train_data.data_limit)
    if options.run.eval_knn_every:
        open_online_splits(options.data.data_path, options.train_data.data_limit)
    if len(source) < options.data.batch_size_per_device:
        raise DataError(
            f"--data_path {options.data.data_path} holds {len(source)} images, less than one batch of "
            f"{options.data.batch_size_per_device}; lower --batch_size_per_device"
        )
    make_output_folder(options.run.output_dir)
    return source


def check_numbers(options: TrainOptions) -> None:
    """Every number in its range.

    Raises:
        OptionError: The first one that is not; the text names the range.
    """
    run, optim, teacher, student, crops = options.run, options.optim, options.teacher, options.student, options.crops
    _at_least(1, epochs=run.epochs, accumulate_steps=run.accumulate_steps, patch_size=options.backbone.patch_size)
    _at_least(1, in_chans=student.in_chans, batch_size_per_device=options.data.batch_size_per_device)
    _at_least(1, global_crops_size=crops.global_crops_size, local_crops_size=crops.local_crops_size)
    _at_least(2, out_dim=student.out_dim)
    _at_least(0, seed=run.seed, saveckp_freq=run.saveckp_freq, save_every_steps=run.save_every_steps)
    _at_least(0, keep_checkpoints=run.keep_checkpoints, eval_knn_every=run.eval_knn_every)
    _at_least(0, local_crops_number=crops.local_crops_number, num_workers=options.data.num_workers)
    _at_least(0, lr=optim.lr, min_lr=optim.min_lr, clip_grad=optim.clip_grad, weight_decay=optim.weight_decay)
    _at_least(0, warmup_epochs=optim.warmup_epochs, warmup_teacher_temp_epochs=teacher.warmup_teacher_temp_epochs)
    _at_least(0, weight_decay_end=optim.weight_decay_end, freeze_last_layer=optim.freeze_last_layer)
    _within(0, 1, drop_path_rate=student.drop_path_rate, momentum_teacher=teacher.momentum_teacher)
    _within(1e-4, 100, warmup_teacher_temp=teacher.warmup_teacher_temp, teacher_temp=teacher.teacher_temp)
    for name in ("global_crops_scale", "local_crops_scale"):
        low, high = getattr(crops, name)
        if not 0 < low <= high <= 1:
            raise OptionError(
                f"--{name} {low} {high} is no range of areas; give two numbers above 0, at most 1, rising"
            )


def check_sizes(options: TrainOptions) -> None:
    """Crops hold at least one patch; a size that patches do not fill is used and named.

    Raises:
        OptionError: A crop smaller than a patch.
    """
    if not is_vit(options.backbone.arch):
        return
    patch = options.backbone.patch_size
    for name in ("global_crops_size", "local_crops_size")[: 1 + (options.crops.local_crops_number > 0)]:
        size = getattr(options.crops, name)
        if size < patch:
            raise OptionError(f"--{name} {size} is less than --patch_size {patch}; make it a multiple of {patch}")
        if size % patch:
            filled = size - size % patch
            logger.warning("--%s %d: patches of %d fill only %d pixels of it", name, size, patch, filled)


def check_warmups(options: TrainOptions) -> None:
    """A warm-up that the user set must fit into the run; the default one is shortened when the run is planned.

    Raises:
        OptionError: It does not fit.
    """
    for name, value in (
        ("warmup_epochs", options.optim.warmup_epochs),
        ("warmup_teacher_temp_epochs", options.teacher.warmup_teacher_temp_epochs),
    ):
        if value > options.run.epochs and name in options.explicit:
            raise OptionError(
                f"--{name} {value} is longer than the run of --epochs {options.run.epochs}; "
                "lower the one or raise the other"
            )


def _at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:
            raise OptionError(f"--{name} {value} cannot be; give {least} or more")


def _within(least: float, most: float, **values: float) -> None:
    for name, value in values.items():
        if not least <= value <= most:
            raise OptionError(f"--{name} {value} cannot be; give {least} to {most}")
