"""The whole run as numbers, before it starts: how many iterations, and what each one uses."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dino.config import chosen
from dino.devices.base import Device
from dino.training.config import TrainConfig
from dino.training.schedules import compute_cosine, compute_teacher_temperature
from dino.training.step import StepInputs

logger = logging.getLogger(__name__)

BATCH_OF_LR = (
    256  # `lr` is meant for this global batch (paper, section 3.2: lr = 0.0005 batch / 256)
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Schedules of a run.

    Attributes:
        epochs: Passes over the images.
        iterations: Updates an epoch.
        micro_batch: Images of one forward pass of one process.
        global_batch: Images an iteration, over all processes and accumulated batches.
        freeze_epochs: Epochs with a frozen last layer.
        set_freq: Iterations for which learning rate, weight decay and momentum stay as they are.
        learning_rate: (epochs * iterations,) float64, as are `weight_decay` and `momentum`.
        temperature: (epochs,) float64.
    """

    epochs: int
    iterations: int
    micro_batch: int
    global_batch: int
    freeze_epochs: int
    set_freq: int = 1
    learning_rate: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    temperature: np.ndarray

    def numbers(self, iteration: int) -> tuple[float, ...]:
        """The numbers of `StepInputs` for one iteration, in its order."""
        epoch, inside = divmod(iteration, self.iterations)
        refreshed = iteration - inside % self.set_freq
        return (
            float(self.learning_rate[refreshed]),
            float(self.weight_decay[refreshed]),
            float(self.momentum[refreshed]),
            float(self.temperature[epoch]),
            float(epoch >= self.freeze_epochs),
        )

    def inputs(self, iteration: int, depth: Tensor | None = None) -> StepInputs:
        """Inputs of one iteration's step, in host memory; `depth` is what `StepDraws.begin` gives."""
        return StepInputs.on_host(self.numbers(iteration), depth)


def build_plan(
    config: TrainConfig, *, iterations: int, world_size: int, device: Device | None = None
) -> Plan:
    """Lay out the schedules.

    Args:
        config: Of the run.
        iterations: Calls of the step an epoch; each is one update, but on devices that make several in a call.
        world_size: Processes.
        device: The one that runs the step; by default one that takes batches as `config` has them.

    Raises:
        OptionError: A temperature warm-up longer than the run.
    """
    run, optim, teacher = config.run, config.optim, config.teacher
    total = run.epochs * iterations
    micro_batches = (
        device.count_micro_batches(run.accumulate_steps) if device else run.accumulate_steps
    )
    updates = device.updates_per_step if device else 1
    global_batch = config.data.batch_size_per_device * micro_batches * world_size
    peak = optim.lr * (global_batch / updates) / BATCH_OF_LR
    logger.info(
        "global batch %d images an update: peak learning rate %g = `lr` %g * %d / %d",
        *(global_batch // updates, peak, optim.lr, global_batch // updates, BATCH_OF_LR),
    )
    return Plan(
        epochs=run.epochs,
        iterations=iterations,
        micro_batch=config.data.batch_size_per_device,
        global_batch=global_batch,
        freeze_epochs=optim.freeze_last_layer,
        set_freq=config.compiled.set_freq,
        learning_rate=compute_cosine(
            base=peak,
            final=optim.min_lr,
            iterations=total,
            warmup=choose_warmup(config, iterations),
        ),
        weight_decay=compute_cosine(
            base=optim.weight_decay, final=optim.weight_decay_end, iterations=total
        ),
        momentum=compute_cosine(base=teacher.momentum_teacher, final=1.0, iterations=total),
        temperature=compute_teacher_temperature(
            start=teacher.warmup_teacher_temp,
            final=teacher.teacher_temp,
            warmup_epochs=teacher.warmup_teacher_temp_epochs,
            epochs=run.epochs,
        ),
    )


def choose_warmup(config: TrainConfig, iterations: int) -> int:
    """Iterations of learning-rate warm-up; a default one longer than the run becomes a tenth of it."""
    asked, epochs = int(chosen(config.optim, "warmup_epochs")), config.run.epochs
    if asked <= epochs:
        return asked * iterations
    shortened = epochs * iterations // 10
    logger.info(
        "`warmup_epochs` %d is longer than `epochs` %d: warming up %d iterations",
        asked,
        epochs,
        shortened,
    )
    return shortened
