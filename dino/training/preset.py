"""`preset` auto: values that follow from the number of images, the global batch and the epochs, with their reasons.

Where the values come from: the original's `--help` and README (its advice for small batches, its vanilla and its
boosted run), what its users report of small data (its issues 246 and 279), the limits that lightly-train sets, and the
square-root rule for adaptive optimizers (Malladi et al., 2022). The original's own runs get the original's own values.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dino.config import as_dict, change
from dino.training.config import TrainConfig

if TYPE_CHECKING:
    from dino.data.image_source import ImageSource

logger = logging.getLogger(__name__)

# Prototypes for at most so many images, after lightly-train's table, which begins at 1024 and ends at 65536 too.
PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
MOST_PROTOTYPES = 65536
MOMENTUM = 0.996  # the original's, for batches of 512 and 1024
SMALL_BATCH_MOMENTUM = 0.9995  # the original's --help, for a batch of 256
LEAST_MOMENTUM = 0.99  # what users of small data and lightly-train take
MEMORY_SHARE = (
    0.01  # share of the run that the teacher may remember; the original's vanilla run: 0.001
)
RATE, CONVNET_RATE = (
    0.0005,
    0.03,
)  # for a batch of 256: the original's, with AdamW; its README for ResNet-50 with SGD
PUBLISHED_BATCHES = (256, 1024)  # between these the original scales the rate linearly
TEMPERATURE, WARM_TEMPERATURE, SMALL_DATA_TEMPERATURE = 0.04, 0.07, 0.03
FEW_IMAGES, MANY_IMAGES = 20_000, 500_000
LONG_RUN, TEMPERATURE_WARMUP = 300, 30  # epochs of the original's boosted run
WARMUP = 10  # epochs of learning-rate warm-up: the original's, and at most a tenth of a run


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a run is: images, images an update over all cards, passes over the images."""

    images: int
    global_batch: int
    epochs: int
    optimizer: str = "adamw"

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return max(1, self.images // self.global_batch) * self.epochs


class Choice(NamedTuple):
    """A value, and why."""

    value: float
    reason: str


def choose_values(scale: Scale) -> dict[str, Choice]:
    """The value of each setting that the preset knows, by name."""
    first, last, warmup = _choose_temperatures(scale)
    return {
        "out_dim": _choose_prototypes(scale),
        "momentum_teacher": _choose_momentum(scale),
        "warmup_teacher_temp": first,
        "teacher_temp": last,
        "warmup_teacher_temp_epochs": warmup,
        "lr": _choose_rate(scale),
        **_choose_warmup(scale),
    }


def apply_preset(
    config: TrainConfig, given: Collection[str], source: ImageSource | None = None
) -> tuple[TrainConfig, dict[str, str]]:
    """Take the preset's values for all settings that nobody gave; nothing changes without a preset.

    Args:
        config: The run's settings.
        given: Names of those that somebody gave.
        source: The images; by default those of `data_path`.

    Returns:
        The settings, and the reason of each value that was chosen.

    Raises:
        DinoError: The images cannot be listed, or a launcher's environment is odd.
    """
    if config.run.preset is None:
        return config, {}

    from dino.data.sources import (
        open_training_source,  # here, because they import torch, and --help does not need it
    )
    from dino.runtime.distributed import read_launch

    world_size = read_launch(os.environ).world_size
    source = source or open_training_source(config.data.data_path, config.train_data.data_limit)
    scale = Scale(
        images=len(source),
        global_batch=config.data.batch_size_per_device * config.run.accumulate_steps * world_size,
        epochs=config.run.epochs,
        optimizer=config.optim.optimizer,
    )
    chosen = {name: choice for name, choice in choose_values(scale).items() if name not in given}
    resolved = change(
        config, {name: value for name, (value, _) in chosen.items()} | {"preset": None}
    )
    return resolved, {name: f"auto: {reason}" for name, (_, reason) in chosen.items()}


def log_reasons(config: TrainConfig, reasons: Mapping[str, str]) -> None:
    """One line for each value that the preset chose."""
    values = as_dict(config)
    for name, reason in reasons.items():
        logger.info("`%s` %g (%s)", name, values[name], reason)


def _choose_prototypes(scale: Scale) -> Choice:
    for most, prototypes in PROTOTYPES:
        if scale.images <= most:
            return Choice(
                prototypes,
                f"{scale.images} images, up to {most}; more prototypes would stay unused",
            )
    return Choice(
        MOST_PROTOTYPES, f"{scale.images} images, over {PROTOTYPES[-1][0]}: the original's"
    )


def _choose_momentum(scale: Scale) -> Choice:
    """1 / (1 - m) updates is what the teacher remembers; it shall be a small part of the run."""
    usual, reason = MOMENTUM, f"the original's, global batch {scale.global_batch}"
    if scale.global_batch < 512:
        usual = SMALL_BATCH_MOMENTUM
        reason = f"global batch {scale.global_batch} is below 512: the original's advice for small batches"
    bound = 1 - 1 / max(1.0, MEMORY_SHARE * scale.updates)
    if usual <= bound:
        return Choice(usual, reason)
    value = max(LEAST_MOMENTUM, round(bound, 4))
    return Choice(
        value,
        f"a run of {scale.updates} updates: a teacher that remembers {1 / (1 - value):.0f} updates",
    )


def _choose_temperatures(scale: Scale) -> tuple[Choice, Choice, Choice]:
    """Of the start, after the warm-up, and the warm-up's epochs."""
    if scale.images <= FEW_IMAGES:
        reason = f"{scale.images} images, up to {FEW_IMAGES}: sharper targets, or few prototypes stay uniform"
        cold = Choice(SMALL_DATA_TEMPERATURE, reason)
        return cold, cold, Choice(0, reason)
    first = Choice(TEMPERATURE, "the original's")
    if scale.epochs >= LONG_RUN and scale.images > MANY_IMAGES:
        reason = f"{scale.epochs} epochs, {LONG_RUN} or more: the original's boosted run"
        return first, Choice(WARM_TEMPERATURE, reason), Choice(TEMPERATURE_WARMUP, reason)
    reason = f"{scale.epochs} epochs of {scale.images} images: constant, as in the original's vanilla run"
    return first, Choice(TEMPERATURE, reason), Choice(0, reason)


def _choose_rate(scale: Scale) -> Choice:
    """The rate for a batch of 256, from which the run scales linearly."""
    batch, (low, high) = scale.global_batch, PUBLISHED_BATCHES
    if scale.optimizer != "adamw":
        return Choice(
            CONVNET_RATE, f"{scale.optimizer}: the original's README for ResNet-50 with sgd"
        )
    if low <= batch <= high:
        return Choice(RATE, f"the original's, global batch {batch}")
    known = min(max(batch, low), high)
    value = float(f"{RATE * math.sqrt(known / batch):.3g}")
    return Choice(
        value,
        f"global batch {batch} is outside {low} to {high}: square-root scaling, {value * batch / 256:.3g} in all",
    )


def _choose_warmup(scale: Scale) -> dict[str, Choice]:
    """None for shorter runs, where the default one becomes a tenth of the run's updates by itself."""
    if scale.epochs < WARMUP:
        return {}
    value = min(WARMUP, scale.epochs // 10)
    return {
        "warmup_epochs": Choice(
            value, "the original's" if value == WARMUP else f"a tenth of {scale.epochs} epochs"
        )
    }
