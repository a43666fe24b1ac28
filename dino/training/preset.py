"""`preset` auto: derive settings from the number of images, the global batch and the epochs.

Each value comes with a reason. The sources are the original's `--help` and README (advice for small
batches, the vanilla and the boosted run), user reports about small data (the original's issues 246
and 279), the limits in lightly-train, and the square-root rule for adaptive optimizers (Malladi et
al., 2022). The preset reproduces the original's values for the original's own runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dino.training.small_data import (
    FEW_IMAGES,
    Choice,
    Start,
    choose_crops,
    choose_for_weights,
    choose_patch,
    choose_small_network,
)

# (most images, prototypes), after lightly-train's table, which also runs from 1024 to 65536.
PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
MOST_PROTOTYPES = 65536
MOMENTUM = 0.996  # the original's, for batches of 512 and 1024
SMALL_BATCH_MOMENTUM = 0.9995  # the original's --help, for a batch of 256
LEAST_MOMENTUM = 0.99  # used by lightly-train and by users with small data
# Share of the run that the teacher may remember; it is 0.001 in the original's vanilla run.
MEMORY_SHARE = 0.01
# For a batch of 256: the original's with AdamW; its README's for ResNet-50 with SGD.
RATE, CONVNET_RATE = 0.0005, 0.03
PUBLISHED_BATCHES = (256, 1024)  # between these the original scales the rate linearly
INITIAL_RATE = RATE / 10
SIDE, PATCH = 224, 16  # of the original's crops
TEMPERATURE, WARM_TEMPERATURE, SMALL_DATA_TEMPERATURE = 0.04, 0.07, 0.03
MANY_IMAGES = 500_000
# What the preset may choose; a run that continues keeps them.
CHOSEN = (
    *("epochs", "arch", "patch_size", "drop_path_rate", "mean", "std"),
    *("local_crops_number", "global_crops_size", "local_crops_size"),
    *("out_dim", "use_bn_in_head", "momentum_teacher", "warmup_teacher_temp", "teacher_temp"),
    *("warmup_teacher_temp_epochs", "lr", "warmup_epochs", "freeze_last_layer"),
)
LONG_RUN, TEMPERATURE_WARMUP = 300, 30  # epochs of the original's boosted run
WARMUP = 10  # epochs of learning-rate warm-up: the original's, and at most a tenth of a run


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a run, and what is set already.

    Attributes:
        images: Number of images.
        global_batch: Images per update, over all cards.
        epochs: Passes over the images.
        optimizer: Update rule.
        side: Shorter side in pixels of a usual image; None if the network has no patches, or if no
            image can be read, and then no sizes are chosen.
        network: Architecture, if it was set.
        patch_size: Patch size, if it was set.
        batch_norm: Whether the device supports batch norm in the head.
        start: The weights from which the run starts, if any.
    """

    images: int
    global_batch: int
    epochs: int
    optimizer: str = "adamw"
    side: int | None = None
    network: str | None = None
    patch_size: int | None = None
    batch_norm: bool = True
    start: Start | None = None

    @property
    def updates(self) -> int:
        """Number of updates in the whole run."""
        return max(1, self.images // self.global_batch) * self.epochs


def choose_values(scale: Scale) -> dict[str, Choice]:
    """Return the preset's choice for each setting that it covers, by name."""
    first, last, warmup = _choose_temperatures(scale)
    return {
        "out_dim": _choose_prototypes(scale),
        "momentum_teacher": _choose_momentum(scale),
        "warmup_teacher_temp": first,
        "teacher_temp": last,
        "warmup_teacher_temp_epochs": warmup,
        "lr": _choose_rate(scale),
        **_choose_warmup(scale),
        **_choose_network(scale),
        **_choose_head(scale),
    }


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
    """The teacher remembers 1 / (1 - m) updates, which should be a small part of the run."""
    usual, reason = MOMENTUM, f"the original's, global batch {scale.global_batch}"
    if scale.global_batch < 512:
        usual = SMALL_BATCH_MOMENTUM
        reason = (
            f"global batch {scale.global_batch} is below 512: "
            "the original's advice for small batches"
        )
    bound = 1 - 1 / max(1.0, MEMORY_SHARE * scale.updates)
    if usual <= bound:
        return Choice(usual, reason)
    value = max(LEAST_MOMENTUM, round(bound, 4))
    return Choice(
        value,
        f"a run of {scale.updates} updates: a teacher that remembers {1 / (1 - value):.0f} updates",
    )


def _choose_temperatures(scale: Scale) -> tuple[Choice, Choice, Choice]:
    """Choose the first temperature, the one after the warm-up, and the epochs of the warm-up."""
    if scale.images <= FEW_IMAGES:
        reason = (
            f"{scale.images} images, up to {FEW_IMAGES}: "
            "sharper targets, or few prototypes stay uniform"
        )
        cold = Choice(SMALL_DATA_TEMPERATURE, reason)
        return cold, cold, Choice(0, reason)
    first = Choice(TEMPERATURE, "the original's")
    if scale.epochs >= LONG_RUN and scale.images > MANY_IMAGES:
        reason = f"{scale.epochs} epochs, {LONG_RUN} or more: the original's boosted run"
        return first, Choice(WARM_TEMPERATURE, reason), Choice(TEMPERATURE_WARMUP, reason)
    reason = (
        f"{scale.epochs} epochs of {scale.images} images: "
        "constant, as in the original's vanilla run"
    )
    return first, Choice(TEMPERATURE, reason), Choice(0, reason)


def _choose_network(scale: Scale) -> dict[str, Choice]:
    """Choose network and crops where images are few or small; {} keeps the original's."""
    side = scale.side
    if side is None:
        return {}
    if scale.start:
        return choose_for_weights(scale.start, side, scale.epochs)
    if scale.images <= FEW_IMAGES and scale.network is None:
        reason = f"{scale.images} images, up to {FEW_IMAGES}: a small network makes more updates"
        return choose_small_network(side, reason)
    if side >= SIDE:
        return {}
    if scale.patch_size or scale.network:
        return choose_crops(SIDE, side, scale.patch_size or PATCH)
    patch = choose_patch(side)
    reason = f"images of {side} pixels, smaller than the original's crops of {SIDE}"
    return {"patch_size": Choice(patch, reason), **choose_crops(SIDE, side, patch)}


def _choose_head(scale: Scale) -> dict[str, Choice]:
    if scale.images > FEW_IMAGES or not scale.batch_norm:
        return {}
    reason = f"{scale.images} images, up to {FEW_IMAGES}: features change within few updates"
    return {"use_bn_in_head": Choice(True, reason)}


def _choose_rate(scale: Scale) -> Choice:
    """Choose the rate for a batch of 256; the run scales it linearly with the batch."""
    if scale.start:
        return Choice(INITIAL_RATE, "`init_from`: a low rate keeps what the weights know")
    batch, (low, high) = scale.global_batch, PUBLISHED_BATCHES
    if scale.optimizer != "adamw":
        return Choice(
            CONVNET_RATE, f"{scale.optimizer}: the original's README for ResNet-50 with sgd"
        )
    if low <= batch <= high:
        return Choice(RATE, f"the original's, global batch {batch}")
    nearest = min(max(batch, low), high)
    value = float(f"{RATE * math.sqrt(nearest / batch):.3g}")
    return Choice(
        value,
        f"global batch {batch} is outside {low} to {high}: "
        f"square-root scaling, {value * batch / 256:.3g} in total",
    )


def _choose_warmup(scale: Scale) -> dict[str, Choice]:
    """Choose the warm-up epochs; {} for short runs, where `build_plan` shortens the default."""
    if scale.epochs < WARMUP:
        return {}
    value = min(WARMUP, scale.epochs // 10)
    return {
        "warmup_epochs": Choice(
            value, "the original's" if value == WARMUP else f"a tenth of {scale.epochs} epochs"
        )
    }
