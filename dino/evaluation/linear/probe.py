"""Linear classification on frozen features (paper, section 4.1; eval_linear.py in the original)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from dino import checkpoint
from dino.config import as_dict, as_recipe
from dino.data.image_source import ImageSource
from dino.errors import OptionError
from dino.evaluation.config import LinearConfig
from dino.evaluation.linear.batches import cache_lessons, open_lessons
from dino.evaluation.linear.head import LinearHead, LinearScore, score_head
from dino.evaluation.linear.task import BEST, CHECKPOINT, LinearTask, load_head, open_task
from dino.evaluation.linear.trainer import LinearTrainer, restore_state
from dino.evaluation.runner import Runner
from dino.models.config import BackboneConfig
from dino.runtime.context import Run, make_output_folder
from dino.runtime.folder_lock import hold_folder
from dino.runtime.ownership import check_recipe, foreign, write_recipe
from dino.runtime.sinks import check_names
from dino.weights.hub import PUBLISHED_LINEAR, find_published
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)


def evaluate_linear(
    config: LinearConfig,
    run: Run,
    *,
    recipe: str | None = None,
    backbone: TrainedBackbone | None = None,
    splits: tuple[ImageSource, ImageSource] | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> LinearScore:
    """Train a linear layer on frozen features, or score an existing one. Log the original's lines.

    Args:
        config: The probe's settings.
        run: Device and processes.
        recipe: Text of recipe.yaml, which reproduces the run. The default lists all settings.
        backbone: The frozen backbone. The default is the one of the settings.
        splits: Train and val images. The default is the data set of the settings.
        wrap: Wrapper of the descriptor module, for another number format.

    Returns:
        The score of the last validation.

    Raises:
        DinoError: The weights do not fit, a folder is missing, an image is unreadable, or the
            checkpoint is of another run.
    """
    runner = Runner(config, run)
    recipe = recipe or as_recipe(config, as_dict(config))
    if not config.linear.evaluate:
        check_names(config.run.log_to)
        check_folder(config)
    task = open_task(config, runner, backbone=backbone, splits=splits)
    if wrap is not None:
        task = replace(
            task, descriptor=replace(task.descriptor, module=wrap(task.descriptor.module))
        )
    if task.train is None:
        score, best = _score_layer(config, task, runner)
    else:
        with hold_folder(config.run.output_dir, first=run.processes.is_rank_zero):
            score, best = _train_layer(config, task, runner, recipe)
    counts = {"train": len(task.train or ()), "test": len(task.test), "classes": task.classes}
    runner.report({**counts, **score._asdict(), "best_top1": best})
    return score


def check_folder(config: LinearConfig) -> None:
    """Check that the output folder is writable and is not one of a pre-training run.

    Raises:
        OptionError: The folder cannot be used.
    """
    if config.linear.pretrained_linear:
        raise OptionError(
            "`pretrained_linear` needs `evaluate`, which scores this layer",
            remedy="add `evaluate`, or leave it out",
        )
    folder = make_output_folder(config.run.output_dir)
    if (folder / checkpoint.LATEST).exists():
        raise OptionError(
            f"`output_dir` {folder} holds a pre-training run: the probe would add to its log.txt",
            value=folder,
            remedy=f"name another: `output_dir` {folder / 'linear'}",
        )
    check_recipe(folder)
    if (folder / BEST).exists() and not (folder / CHECKPOINT).exists():
        raise foreign(folder / BEST, "is of another run")


def _train_layer(
    config: LinearConfig, task: LinearTask, runner: Runner, recipe: str
) -> tuple[LinearScore, float]:
    assert task.train is not None
    run = runner.run
    layer = restore_state(config, task, run)
    if layer.epoch > config.run.epochs:
        logger.info(
            "`output_dir` has %d epochs, `epochs` %d asks for fewer: nothing to train",
            layer.epoch,
            config.run.epochs,
        )
    elif run.processes.is_rank_zero:
        write_recipe(Path(config.run.output_dir), recipe)
    test = runner.extract(task.descriptor, task.test, normalize=False)
    logger.info("Data loaded with %d train and %d val imgs.", len(task.train), len(task.test))
    # A finished layer needs no training features.
    finished = layer.epoch >= config.run.epochs
    build = cache_lessons if config.linear.cache_features and not finished else open_lessons
    train_batches = build(task.descriptor, task.train, run, task.reading, seed=config.run.seed)
    score = LinearTrainer(
        config, run, layer, task=task, train_batches=train_batches, test=test
    ).run_epochs()
    return score, layer.best


def _score_layer(
    config: LinearConfig, task: LinearTask, runner: Runner
) -> tuple[LinearScore, float]:
    run = runner.run
    head = LinearHead(task.width, task.classes)
    with run.processes.rank_zero_first():
        path, published = _find_layer(config, task)
        load_head(head, path, task.identity, published=published)
    test = runner.extract(task.descriptor, task.test, normalize=False)
    infer = run.device.compile_eval(head)
    score = score_head(
        infer, test, classes=task.classes, batch_size=task.reading.batch_size, run=run
    )
    logger.info("* %s", score.describe())
    logger.info("Accuracy of the network on the %d test images: %.1f%%", len(task.test), score.top1)
    return score, score.top1


def _find_layer(config: LinearConfig, task: LinearTask) -> tuple[Path, bool]:
    """Find the layer's file, and whether it is published: as named, this folder's, or published."""
    own = Path(config.run.output_dir) / CHECKPOINT
    if config.linear.pretrained_linear:
        return Path(config.linear.pretrained_linear), False
    if own.exists():
        return own, False
    backbone = BackboneConfig(arch=task.descriptor.arch, patch_size=task.descriptor.patch_size)
    remedy = f"give `pretrained_linear`, or the `output_dir` that holds {CHECKPOINT}"
    return find_published(backbone, PUBLISHED_LINEAR, remedy=remedy), True
