"""Plan a run before it starts: the number of iterations and the schedule values of each one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dino.config import chosen
from dino.devices.base import Device
from dino.training.config import TrainConfig
from dino.training.schedules import compute_cosine, compute_teacher_temperature
from dino.training.step_values import StepInputs

logger = logging.getLogger(__name__)

# `lr` is for this global batch (paper, section 3.2: lr = 0.0005 batch / 256).
BATCH_OF_LR = 256


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Schedules of a run.

    Attributes:
        epochs: Passes over the images.
        iterations: Iterations per epoch.
        micro_batch: Images in one forward pass of one process.
        global_batch: Images per iteration, over all processes and accumulated batches.
        freeze_epochs: Epochs with a frozen last layer.
        set_freq: Iterations between changes of learning rate, weight decay and momentum.
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
        """Return the numbers of `StepInputs` for one iteration, in field order."""
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
        """Return one iteration's step inputs in host memory; `depth` is from `StepDraws.begin`."""
        return StepInputs.on_host(self.numbers(iteration), depth)

    def describe(self, iteration: int) -> str:
        """What a run that starts at `iteration` says about its length."""
        total = self.epochs * self.iterations
        return (
            f"{self.epochs} epochs of {self.iterations} iterations, {total} in all, from"
            f" {iteration} on; {self.global_batch} images each"
        )


def build_plan(
    config: TrainConfig, *, iterations: int, world_size: int, device: Device | None = None
) -> Plan:
    """Build the schedules of a run.

    Args:
        config: The run's settings.
        iterations: Calls of the step per epoch; each is one update, except on devices that make
            several updates in a call.
        world_size: Number of processes.
        device: The device that runs the step; defaults to one that takes batches as in `config`.

    Raises:
        OptionError: A warm-up is longer than the run.
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
        "global batch %d images per update: peak learning rate %g = `lr` %g * %d / %d",
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
    """Return the learning-rate warm-up in iterations; one longer than the run becomes a tenth."""
    warmup, epochs = int(chosen(config.optim, "warmup_epochs")), config.run.epochs
    if warmup <= epochs:
        return warmup * iterations
    shortened = epochs * iterations // 10
    logger.info(
        "`warmup_epochs` %d is longer than `epochs` %d: warming up for %d iterations",
        warmup,
        epochs,
        shortened,
    )
    return shortened
