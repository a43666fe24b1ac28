"""What would make a run shorter, as far as it can be estimated without running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dino.models.registry import is_vit
from dino.training.config import TrainConfig
from dino.training.flops import count_flops

SHOWN = 3  # the most effective changes
LEAST = 0.95  # of the duration; what saves less is not worth a word
COMPUTED = ("teacher", "student", "loss", "backward")  # phases whose time follows the operations
SMALLER = {"vit_base": "vit_small", "vit_small": "vit_tiny", "resnet50": "resnet18"}
CROP_STEP = 32  # pixels; smaller crops are a multiple of it


def describe_savings(
    config: TrainConfig, hours: float, *, flops: float, shares: Mapping[str, float]
) -> list[str]:
    """Return a line on what shortens a run most, with the hours that it would take.

    The time of the networks is taken to follow their operations; all other time stays. What does
    not save operations, such as a number format, cannot be estimated so and is not named.

    Args:
        config: The settings of the run.
        hours: Of the run as it is.
        flops: Operations per image, as it is.
        shares: Share of a step's time by phase.
    """
    computed = sum(shares.get(phase, 0.0) for phase in COMPUTED)
    found = sorted(
        (1 - computed + computed * count_flops(changed) / flops, text)
        for text, changed in list_changes(config)
    )
    parts = [f"{text} {format_hours(share * hours)}" for share, text in found if share < LEAST]
    return [f"shorter, in hours (estimates): {', '.join(parts[:SHOWN])}"] if parts else []


def list_changes(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Yield settings that save operations, each with the run that has it."""
    crops, arch = config.crops, config.backbone.chosen_arch
    if crops.local_crops_number > 1:
        yield _change(config, "crops", local_crops_number=crops.local_crops_number // 2)
    smaller = round(crops.global_crops_size / 2**0.5 / CROP_STEP) * CROP_STEP
    if is_vit(arch) and crops.local_crops_size < smaller < crops.global_crops_size:
        yield _change(config, "crops", global_crops_size=smaller)
    if is_vit(arch) and config.backbone.chosen_patch_size == 8 and crops.local_crops_size >= 32:
        yield _change(config, "backbone", patch_size=16)
    if arch in SMALLER:
        yield _change(config, "backbone", arch=SMALLER[arch])


def _change(config: TrainConfig, group: str, **values: Any) -> tuple[str, TrainConfig]:
    ((name, value),) = values.items()
    changed = replace(getattr(config, group), **values)
    return f"`{name}` {value}", replace(config, **{group: changed})


def format_hours(hours: float) -> str:
    """Write hours with a tenth, or with two digits where they are few."""
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"
