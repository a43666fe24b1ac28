"""Pre-training from Python."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino import checkpoint
from dino.api.inputs import is_path, refuse_made
from dino.api.weights import load
from dino.config import as_recipe, build
from dino.data.image_source import ImageSource
from dino.data.user_images import UserSource, wrap_images
from dino.errors import Interrupted, OptionError
from dino.evaluation.knn import build_online_knn
from dino.runtime.context import STOP_SIGNALS, Run, open_run
from dino.runtime.metrics import LOG_FILE, read_history
from dino.training.checks import check_options
from dino.training.config import TrainConfig
from dino.training.preset import apply_preset, log_reasons
from dino.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a pre-training run leaves.

    Attributes:
        checkpoint: The newest checkpoint; the same call with more `epochs` continues from it.
        teacher: The teacher's backbone, as `load` gives it.
        history: One mapping an epoch, the lines of log.txt: epoch, train_loss, train_lr and so on; empty where no epoch
            was logged.
    """

    checkpoint: Path
    teacher: nn.Module
    history: list[dict[str, Any]]


def pretrain(data: Any, output_dir: str | os.PathLike[str], **settings: Any) -> Result:
    """Pre-train a vision backbone with DINO; the same call continues where an earlier one was interrupted.

    On the CPU training asks malloc to keep what is freed, and in bf16 it replaces torch's attention; both stay with the
    process. Nothing else of it changes: its log handlers, signal handlers and random numbers are as before.

    Ctrl-C, in the main thread, saves and then raises KeyboardInterrupt; a second one raises it at once.

    Args:
        data: A path (folder, tar shards, list of files, "demo"), or a map-style torch Dataset (or list) of PIL images,
            uint8 tensors (C, H, W) or arrays (H, W, C), or of tuples that begin with one; labels are not used. None
            with `synthetic_data`. Continuing to the bit needs the same images in the same order; of a Dataset only the
            length can be checked.
        output_dir: Folder of checkpoints, log.txt and TensorBoard events.
        **settings: Named like the flags of main_dino.py: `arch`, `epochs`, `batch_size_per_device`, `lr`, `device`,
            `precision`, `preset` and so on; defaults are theirs.

    Raises:
        TypeError: A keyword that is no setting; the nearest one is named.
        DinoError: Wrong values, images that cannot be read, or a checkpoint of another run in the folder; `Interrupted`
            where SIGTERM or SIGUSR1 came, after it has saved.
        KeyboardInterrupt: After Ctrl-C; the text says which checkpoint the next call continues from.
    """
    refuse_made("pretrain", settings, ("data_path",))
    given = {"output_dir": output_dir, **({"data_path": data} if is_path(data) else {}), **settings}
    config = build(TrainConfig, given)
    own = _wrap(data, config)
    config, reasons = apply_preset(config, given, own)
    log_reasons(config, reasons)
    source = check_options(config, own)
    _train(config, source, recipe=as_recipe(config, given, reasons))
    folder = Path(config.run.output_dir)
    return Result(
        folder / checkpoint.LATEST,
        load(folder / checkpoint.LATEST),
        read_history(folder / LOG_FILE),
    )


def _wrap(data: Any, config: TrainConfig) -> ImageSource | None:
    """A program's own images; None where the settings name them.

    Raises:
        DataError: There are none.
        OptionError: A setting that wants images on disk, or none.
    """
    if config.run.dry_run:
        raise OptionError(
            "`dry_run` ends without a result", remedy="leave it out; main_dino.py has it"
        )
    if is_path(data) or data is None:
        return None
    if config.train_data.synthetic_data:
        raise OptionError("`synthetic_data` reads no images", remedy="give data=None")
    if config.run.eval_knn_every:
        raise OptionError(
            "`eval_knn_every` needs a folder with train and val",
            remedy="leave it out, and score by dino.knn",
        )
    return wrap_images(data).limited(config.train_data.data_limit)


def _train(config: TrainConfig, source: ImageSource, *, recipe: str) -> None:
    """Train to the end, or until a signal.

    Raises:
        KeyboardInterrupt: Ctrl-C, after it has saved.
        DinoError: As `pretrain`.
    """
    stops_on = (*STOP_SIGNALS, signal.SIGINT)
    stopped: list[signal.Signals | None] = []
    try:
        with torch.random.fork_rng(devices=[]), _open(config) as run:
            if isinstance(source, UserSource) and run.processes.is_rank_zero:
                logger.warning(
                    "a data set of %d images: only their number is checked when the run continues",
                    len(source),
                )
            score = score_online(config, run) if config.run.eval_knn_every else None
            trainer = Trainer(config, source, run, score, recipe=recipe, stops_on=stops_on)
            try:
                trainer.train()
            finally:
                stopped.append(trainer.stop.signal)
            run.processes.barrier()  # what rank 0 wrote is read by all
    except Interrupted as error:
        if stopped[-1] == signal.SIGINT:
            raise KeyboardInterrupt(str(error)) from error
        raise


def _open(config: TrainConfig) -> contextlib.AbstractContextManager[Run]:
    return open_run(
        config.device,
        config.launch,
        precision=config.precision,
        compiled=config.compiled,
        synthetic=config.train_data.synthetic_data,
        output_dir=config.run.output_dir,
    )


def score_online(config: TrainConfig, run: Run) -> Callable[[nn.Module], Mapping[str, float]]:
    """The k-NN score of the teacher that a run asks for every few epochs."""
    return build_online_knn(
        config.data,
        run,
        image_size=config.crops.global_crops_size,
        in_chans=config.student.chosen_in_chans,
        data_limit=config.train_data.data_limit,
    )
