"""Pre-training from Python."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dino import checkpoint
from dino.api.inputs import is_path
from dino.api.weights import load
from dino.config import as_recipe, build
from dino.data.user_images import wrap_images
from dino.errors import Interrupted
from dino.evaluation.knn import build_online_knn
from dino.runtime.context import STOP_SIGNALS, Run, open_run
from dino.runtime.metrics import LOG_FILE, read_history
from dino.training.checks import check_options
from dino.training.config import TrainConfig
from dino.training.preset import apply_preset, log_reasons
from dino.training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a pre-training run leaves.

    Attributes:
        checkpoint: The newest checkpoint; the same call continues from it.
        teacher: The teacher's backbone, as `load` gives it.
        history: One mapping an epoch, the lines of log.txt: epoch, train_loss, train_lr and so on.
    """

    checkpoint: Path
    teacher: nn.Module
    history: list[dict[str, Any]]


def pretrain(data: Any, output_dir: str | os.PathLike[str], **settings: Any) -> Result:
    """Pre-train a vision backbone with DINO; the same call continues where an earlier one ended.

    Importing or calling other functions changes nothing of the process; while this one trains on the CPU it asks
    malloc to keep freed memory and, in bf16, replaces what torch makes of attention. Ctrl-C saves and then raises
    KeyboardInterrupt; a second one raises it at once.

    Args:
        data: A path (folder, tar shards, list of files, "demo"), or a map-style torch Dataset (or list) of PIL images,
            uint8 tensors (C, H, W) or arrays (H, W, C), with labels or not. Continuing to the bit needs the same images
            in the same order; of a Dataset only the length can be checked.
        output_dir: Folder of checkpoints, log.txt and TensorBoard events.
        **settings: Named like the flags of main_dino.py: `arch`, `epochs`, `batch_size_per_device`, `lr`, `device`,
            `precision`, `preset` and so on; defaults are theirs.

    Raises:
        TypeError: A keyword that is no setting.
        DinoError: Wrong values, images that cannot be read, or a checkpoint of another run in the folder.
        KeyboardInterrupt: After Ctrl-C; the checkpoint says where it was.
    """
    given = {"output_dir": output_dir, **({"data_path": data} if is_path(data) else {}), **settings}
    config, reasons = apply_preset(build(TrainConfig, given), given)
    log_reasons(config, reasons)
    source = check_options(config, None if is_path(data) else wrap_images(data))
    with open_run(
        config.device,
        config.launch,
        precision=config.precision,
        compiled=config.compiled,
        synthetic=config.train_data.synthetic_data,
        output_dir=config.run.output_dir,
    ) as run:
        trainer = Trainer(
            config,
            source,
            run,
            score_online(config, run) if config.run.eval_knn_every else None,
            recipe=as_recipe(config, given, reasons),
            stops_on=(*STOP_SIGNALS, signal.SIGINT),
        )
        try:
            trainer.train()
        except Interrupted as error:
            if trainer.stop.signal == signal.SIGINT:
                raise KeyboardInterrupt(str(error)) from error
            raise
    folder = Path(config.run.output_dir)
    return Result(folder / checkpoint.LATEST, load(folder / checkpoint.LATEST), read_history(folder / LOG_FILE))


def score_online(config: TrainConfig, run: Run) -> Callable[[nn.Module], Mapping[str, float]]:
    """The k-NN score of the teacher that a run asks for every few epochs."""
    return build_online_knn(
        config.data,
        run,
        image_size=config.crops.global_crops_size,
        in_chans=config.student.chosen_in_chans,
        data_limit=config.train_data.data_limit,
    )
