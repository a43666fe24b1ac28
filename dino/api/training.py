"""Pre-training from Python."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino import checkpoint
from dino.api.inputs import is_path, refuse_made
from dino.api.weights import load
from dino.config import as_dict, as_recipe, build
from dino.data.image_source import ImageSource
from dino.data.user_images import UserSource, wrap_images
from dino.errors import OptionError, StoppedByCtrlC
from dino.evaluation.features import build_loader_config
from dino.evaluation.knn import build_online_knn
from dino.evaluation.own_view import OwnViews
from dino.runtime.context import Run, open_run
from dino.runtime.folder_lock import hold_folder
from dino.runtime.log_file import read_history
from dino.runtime.metrics import LOG_FILE
from dino.training.build import build_recipe, choose_normalization
from dino.training.checks import check_options
from dino.training.choices import choose_settings, log_reasons
from dino.training.config import TrainConfig
from dino.training.scores import Scorers
from dino.training.time_budget import fit_hours
from dino.training.trainer import Trainer
from dino.visualization.run_pictures import RunPictures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of a pre-training run.

    Attributes:
        checkpoint: The newest checkpoint. The same call with more `epochs` continues from it.
        teacher: The teacher's backbone, as returned by `load`.
        history: The lines of log.txt, one mapping per epoch: epoch, train_loss, train_lr and so on.
            Empty if no epoch was logged.
    """

    checkpoint: Path
    teacher: nn.Module
    history: list[dict[str, Any]]


def pretrain(data: Any, output_dir: str | os.PathLike[str], **settings: Any) -> Result:
    """Pre-train a vision backbone with DINO. The same call continues an interrupted run.

    On the CPU, training makes malloc keep freed memory, and bf16 replaces torch's attention. Both
    last as long as the process. Log handlers, signal handlers and the random state are restored.

    Ctrl-C in the main thread saves, then raises KeyboardInterrupt. A second one raises it at once,
    as does the first one if there is nothing to save.

    Args:
        data: A path (folder, tar shards, list of files, "demo"), or a map-style torch Dataset (or
            list) of PIL images, uint8 tensors (C, H, W) or arrays (H, W, C), or of tuples that
            begin with one. Labels are not used. None with `synthetic_data`. A bit-exact
            continuation needs the same images in the same order; for a Dataset only the length can
            be checked.
        output_dir: Folder of checkpoints, log.txt and TensorBoard events.
        **settings: Named like the flags of main_dino.py, with the same defaults: `arch`, `epochs`,
            `batch_size_per_device`, `lr`, `device`, `precision`, `preset` and so on.

    Raises:
        TypeError: A keyword is not a setting. The message suggests the closest one.
        DinoError: A value is wrong, an image cannot be read, or the folder holds a checkpoint of
            another run. `Interrupted` on SIGTERM, SIGUSR1 or SIGHUP, after saving.
        KeyboardInterrupt: On Ctrl-C. The text names the checkpoint to continue from, if there is
            one.
    """
    refuse_made("pretrain", settings, ("data_path",))
    data_path = {"data_path": data} if is_path(data) else {}
    keywords = {"output_dir": output_dir, **data_path, **settings}
    config = build(TrainConfig, keywords)
    own_images = _wrap(data, config)
    config, reasons = choose_settings(config, keywords, own_images)
    log_reasons(config, reasons)
    source = check_options(config, own_images)
    _train(config, source, keywords, reasons)
    folder = Path(config.run.output_dir)
    return Result(
        folder / checkpoint.LATEST,
        load(folder / checkpoint.LATEST),
        read_history(folder / LOG_FILE),
    )


def _wrap(data: Any, config: TrainConfig) -> ImageSource | None:
    """Wrap the caller's own images. Returns None if the settings name the images.

    Raises:
        DataError: There are no images.
        OptionError: A setting needs images on disk, or excludes images.
    """
    if config.run.dry_run:
        raise OptionError(
            "`dry_run` ends without a result", remedy="leave it out, or use main_dino.py"
        )
    if is_path(data) or data is None:
        return None
    if config.train_data.synthetic_data:
        raise OptionError("`synthetic_data` reads no images", remedy="pass data=None")
    if config.run.eval_knn_every:
        raise OptionError(
            "`eval_knn_every` needs a folder with train and val",
            remedy="leave it out, and score with dino.knn",
        )
    return wrap_images(data).limited(config.train_data.data_limit)


def _train(
    config: TrainConfig, source: ImageSource, given: Collection[str], reasons: Mapping[str, str]
) -> None:
    """Train to the end, or until a signal.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after saving.
        DinoError: As in `pretrain`.
    """
    try:
        with (
            torch.random.fork_rng(devices=[]),
            _open(config) as run,
            hold_folder(config.run.output_dir, first=run.processes.is_rank_zero),
        ):
            if isinstance(source, UserSource) and run.processes.is_rank_zero:
                logger.warning(
                    "a data set of %d images: only their number is checked when the run continues",
                    len(source),
                )
            config, more = fit_hours(config, given, run, source)
            log_reasons(config, more)
            recipe = as_recipe(config, given, {**reasons, **more})
            scorers = build_scorers(config, source, run)
            pictures = build_pictures(config, source, run)
            Trainer(config, source, run, scorers, pictures=pictures, recipe=recipe).train()
            run.processes.barrier()  # every rank reads the files that rank 0 wrote
    except StoppedByCtrlC as error:
        raise KeyboardInterrupt(str(error)) from error


def _open(config: TrainConfig) -> contextlib.AbstractContextManager[Run]:
    return open_run(
        config.device,
        config.launch,
        precision=config.precision,
        compiled=config.compiled,
        synthetic=config.train_data.synthetic_data,
        output_dir=config.run.output_dir,
        settings=as_dict(config),
    )


def build_scorers(config: TrainConfig, source: ImageSource, run: Run) -> Scorers:
    """Build what scores the teacher during training, as far as the settings ask for it."""
    return Scorers(
        knn=score_online(config, run) if config.run.eval_knn_every else None,
        own_view=score_own_views(config, source, run),
    )


def score_online(config: TrainConfig, run: Run) -> Callable[[nn.Module], Mapping[str, float]]:
    """Build the k-NN score of the teacher for `eval_knn_every`."""
    return build_online_knn(
        config.data,
        run,
        image_size=config.crops.global_crops_size,
        normalization=choose_normalization(config),
        pixel_range=config.train_data.pixel_range,
        data_limit=config.train_data.data_limit,
    )


def score_own_views(config: TrainConfig, source: ImageSource, run: Run) -> OwnViews | None:
    """Build the scores without labels; None if they are off or have no images or no device."""
    count, data = config.run.own_view_images, config.train_data
    if not count or data.synthetic_data or not run.device.scores_in_training:
        return None
    return OwnViews(
        source.ranged(data.pixel_range).limited(count),
        build_recipe(config),
        run,
        build_loader_config(config.data, run, keep_on_device=True),
        normalization=choose_normalization(config),
        skip_bad=data.on_bad_image == "skip",
    )


def build_pictures(config: TrainConfig, source: ImageSource, run: Run) -> RunPictures | None:
    """Build what draws a run's pictures, on the first process, if there are images to draw.

    Raises:
        OptionError: A picture would replace a file that is not of this package.
    """
    if (
        not config.run.draw_pictures
        or config.train_data.synthetic_data
        or not run.processes.is_rank_zero
    ):
        return None
    return RunPictures(
        Path(config.run.output_dir),
        source.ranged(config.train_data.pixel_range),
        run,
        arch=config.backbone.chosen_arch,
        image_size=config.crops.global_crops_size,
        in_chans=config.student.chosen_in_chans,
        normalization=choose_normalization(config),
    )
